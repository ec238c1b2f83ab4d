"""The command line.

- `program.py`: finds the commands, runs one, and turns what happens into an exit code
- `failures.py`: exit codes, and errors in words
- `commands/`: one module or package per command
- `configuration.py`: the options and the loading of settings
- `output.py`: tables, records and JSON
- `client.py`: the management API's client; `base_url.py` and `management_token.py` say where it is and what opens it
- `confirmation.py`: the question before something is deleted
- `database.py`: the database itself, for commands that need no server
- `worker.py`: one serving process
- `demo/`: the demo's tour
"""

from __future__ import annotations

from typing import NoReturn

from llm_proxy.cli.program import program

__all__ = ["main", "program"]


def main() -> NoReturn:
    """Run `llm-proxy` with the process's arguments."""
    program.main()
