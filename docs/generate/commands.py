"""The reference of all commands, from the command line itself."""

from __future__ import annotations

from collections.abc import Iterator

import click

from llm_proxy.cli.program import program

_INTRODUCTION = """\
# Commands

One program, `llm-proxy`, which is also `python -m llm_proxy`. This page has the `--help` of each command.

- **Exit codes**: 0 done, 1 error, 2 wrong usage or cannot connect, 3 not authorised. What the server refuses, such as a
  value that is out of range, is an error (1).
- **Errors** are one line on stderr that says what is wrong and what to do. `--debug` also shows the traceback.
- **Listings** have `--json`. Long commands show a progress bar on a terminal, and lines elsewhere.
- **Settings** are read from flags, the environment, a `.env` file and defaults, in this order: see
  [Settings](configuration.md).
"""
_WIDTH = 100


def page() -> str:
    """The whole page, in Markdown."""
    return "\n".join([_INTRODUCTION, *_sections(program, _context(program, "llm-proxy"))])


def _context(command: click.Command, name: str, parent: click.Context | None = None) -> click.Context:
    # With the program's own settings, because click keeps the first help option that it creates.
    settings = {} if parent is not None else program.context_settings
    return click.Context(command, info_name=name, parent=parent, **settings)


def _sections(command: click.Command, context: click.Context) -> Iterator[str]:
    """A section for each command that does something, in the order of `--help`."""
    if isinstance(command, click.Group) and not command.invoke_without_command:
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            if found is not None and not found.hidden:
                yield from _sections(found, _context(found, name, context))
        return
    formatter = click.HelpFormatter(width=_WIDTH, max_width=_WIDTH)
    command.format_help(context, formatter)
    yield f"## {context.command_path}\n"
    yield f"```text\n{formatter.getvalue().rstrip()}\n```\n"
