"""The tour's way of printing: numbered steps, wrapped to the terminal, as readable in a pipe as on a screen."""

from __future__ import annotations

import shutil
import textwrap

import click

from llm_proxy.cli.output import printable

#: Lines are never longer than this, however wide the terminal is.
_WIDEST = 80
_INDENT = "    "
_NEWLINE = ("", "\n")


class Screen:
    """Prints the tour to stdout. Colours are left out where stdout is not a terminal."""

    def __init__(self) -> None:
        """Look how wide the terminal is."""
        self._width = min(shutil.get_terminal_size((_WIDEST, 24)).columns, _WIDEST)
        self._steps = 0
        self._column = 0

    def title(self, text: str, subtitle: str) -> None:
        """Begin the tour."""
        click.echo(click.style(text, bold=True))
        click.echo(click.style(subtitle, dim=True))

    def step(self, text: str) -> None:
        """Begin a numbered step."""
        self._steps += 1
        click.echo()
        click.echo(f"{click.style(f'{self._steps:>2}', fg='cyan', bold=True)}  {click.style(text, bold=True)}")

    def say(self, text: str) -> None:
        """Print a paragraph of the step."""
        click.echo(textwrap.fill(text, self._width, initial_indent=_INDENT, subsequent_indent=_INDENT))

    def note(self, text: str) -> None:
        """Print a line of figures."""
        lines = textwrap.fill(text, self._width, initial_indent=_INDENT, subsequent_indent=_INDENT)
        click.echo(click.style(lines, dim=True))

    def block(self, text: str) -> None:
        """Print lines as they are, indented."""
        click.echo(textwrap.indent(text, _INDENT))

    def command(self, text: str) -> None:
        """Print a command to copy, between blank lines, a little to the left because commands are long."""
        click.echo(f"\n{textwrap.indent(text, _INDENT[2:])}\n")

    def good(self, text: str) -> None:
        """Print a result that is as it should be."""
        self._marked("✓", "green", text)

    def bad(self, text: str) -> None:
        """Print a result that is not as it should be."""
        self._marked("✗", "red", text)

    def answer(self, text: str) -> None:
        """Print what the provider said."""
        lines = textwrap.fill(printable(text), self._width, initial_indent=_INDENT, subsequent_indent=_INDENT)
        click.echo(click.style(lines, fg="green"))

    def stream(self, piece: str) -> None:
        """Print a piece of what the provider says as soon as it comes, and break the line where it is full."""
        text = printable(piece)
        if self._column == 0 or self._column + len(text) > self._width:
            click.echo(f"{_NEWLINE[self._column > 0]}{_INDENT}", nl=False)
            self._column = len(_INDENT)
            text = text.lstrip()
        click.echo(click.style(text, fg="green"), nl=False)
        self._column += len(text)

    def end_stream(self) -> None:
        """End what was printed in pieces."""
        click.echo()
        self._column = 0

    def _marked(self, mark: str, colour: str, text: str) -> None:
        lines = textwrap.wrap(text, self._width - len(_INDENT) - 2)
        first, *rest = lines
        click.echo(f"{_INDENT}{click.style(mark, fg=colour, bold=True)} {first}")
        for line in rest:
            click.echo(f"{_INDENT}  {line}")
