"""The configuration: every environment variable declared once, read once, wrong ones reported together.

- `declaration.py`: the settings themselves, and `Settings.load`
- `kinds.py`: durations, sizes, addresses …: how text becomes a value
- `fields.py`: how a setting is declared, and found among flags, environment, `.env` file and defaults
- `checks.py`: rules across settings
- `dotenv.py`: the `.env` file
- `problems.py`: what is wrong with it, in words
"""

from __future__ import annotations

from llm_proxy.config.declaration import Settings, read_one
from llm_proxy.config.kinds import ListenAddress, parse_duration
from llm_proxy.config.problems import Problem, SettingsError

__all__ = [
    "ListenAddress",
    "Problem",
    "Settings",
    "SettingsError",
    "parse_duration",
    "read_one",
]
