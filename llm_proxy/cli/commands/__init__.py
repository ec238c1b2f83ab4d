"""The commands: one module or package each, with an attribute `command`."""
