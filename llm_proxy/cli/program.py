"""The program: its commands, and how an error becomes one line and an exit code."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any, Final, NoReturn

import click

from llm_proxy import __version__
from llm_proxy.cli.failures import DONE, ERROR, WRONG_USAGE, explain

#: Each command, which is the attribute `command` of a module in `llm_proxy/cli/commands`, and its line in `--help`.
COMMANDS: Final = {
    "benchmark": "Put load on a running proxy, and measure it.",
    "db": "Check, copy and back up the database.",
    "demo": "Show the proxy at work, offline, in a few seconds.",
    "keys": "Rotate the keys that encrypt API keys.",
    "ledger": "Verify the ledger.",
    "manage": "Manage a running server: projects, tokens, requests, usage.",
    "migrate": "Migrate the schema of the database, or undo migrations.",
    "prices": "Show what models cost, and find models without a price.",
    "reload": "Let a running server read its provider and price files again.",
    "server": "Migrate the database, then serve.",
}


def _debug_option() -> click.Option:
    def remember(context: click.Context, _: click.Parameter, value: bool) -> None:  # noqa: FBT001 (click's signature)
        if value:
            context.meta[__name__] = True

    text = "Show the traceback of an error."
    return click.Option(["--debug"], is_flag=True, expose_value=False, callback=remember, help=text)


class Command(click.Command):
    """A command that takes `--debug`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.append(_debug_option())


class Group(click.Group):
    """A group whose commands all take `--debug`."""

    command_class = Command
    group_class = type


class Program(Group):
    """`llm-proxy`. It imports a command's module only to run it, so that `--help` and small commands are fast."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.append(_debug_option())

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"llm_proxy.cli.commands.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name]) for name in self.list_commands(ctx)])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, or suggest a similar one: click knows only commands that are imported."""
        try:
            return super().resolve_command(ctx, args)
        except click.NoSuchCommand as error:
            raise click.NoSuchCommand(error.command_name, possibilities=self.list_commands(ctx), ctx=ctx) from None

    def main(self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any) -> NoReturn:  # type: ignore[override]  # always ends the process, unlike click's
        arguments = list(sys.argv[1:] if args is None else args)
        debug = False
        code = DONE
        try:
            with self.make_context(prog_name or "llm-proxy", arguments, **extra) as context:
                try:
                    self.invoke(context)
                finally:
                    debug = context.meta.get(__name__, False)
            sys.stdout.flush()
        except click.exceptions.Exit as end:
            code = end.exit_code
        except click.exceptions.NoArgsIsHelpError as error:
            error.show()
            code = WRONG_USAGE
        except BrokenPipeError:
            # The reader has closed the pipe. The rest of the buffer must not fail again at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = ERROR
        except BaseException as error:  # noqa: BLE001 (every error becomes a line and an exit code)
            code = report(error, debug=debug)
        sys.exit(code)


def report(error: BaseException, *, debug: bool) -> int:
    """Print the error to stderr, with its traceback if `--debug` is given, and return the exit code."""
    message, code = explain(error)
    if debug:
        traceback.print_exception(error)
    if message:
        click.echo(f"{click.style('error:', fg='red', bold=True)} {message}", err=True)
    return code


@click.group(cls=Program, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="llm-proxy", message="%(prog)s %(version)s")
def program() -> None:
    """Keep your LLM provider's API key, issue expiring tokens, and record every request exactly.

    Settings are read from flags, the environment, a .env file and defaults, in this order.
    """
