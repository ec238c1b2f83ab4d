"""The configuration: every setting declared once, read once; all mistakes reported together.

- `declaration.py`: the settings, and `Settings.load`
- `kinds.py`: durations, sizes, addresses, …: how text becomes a value
- `sources.py`: how a setting is declared, and found in flags, environment and `.env` file
- `checks.py`: rules that concern several settings
- `dotenv.py`: the `.env` file
- `document.py`: YAML files into structs, with the line of each mistake
- `database.py`: the database and the key file, as the settings describe them
"""

from __future__ import annotations

from llm_proxy.config.declaration import Settings, read_one
from llm_proxy.config.kinds import ListenAddress, parse_duration
from llm_proxy.config.sources import SettingsError

__all__ = ["ListenAddress", "Settings", "SettingsError", "parse_duration", "read_one"]
