"""The version of the program, the same as the distribution's."""

from __future__ import annotations

from typing import Final

VERSION: Final = "0.1.0"
