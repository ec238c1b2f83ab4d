"""The command line.

- `program`: finds the commands, runs one, and turns an error into a line and an exit code
- `failures`: exit codes and error messages
- `commands/`: one module or package per command
- `options`: options that commands share, and the settings behind them
- `output`: tables, records and JSON
- `client`: the client of the management API
- `database`: opens the database, for commands that need no server
"""

from __future__ import annotations

from typing import NoReturn

from llm_proxy.cli.program import program

__all__ = ["main", "program"]


def main() -> NoReturn:
    program.main()
