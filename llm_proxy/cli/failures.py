"""What went wrong, as one line for the person at the terminal and an exit code for their scripts."""

from __future__ import annotations

from typing import Final

import click

from db.errors import BadDsn, DatabaseError, Unavailable
from llm_proxy.config import SettingsError
from llm_proxy.logging.sink import LogError
from llm_proxy.secrets.encryption import CryptoError

DONE: Final = 0
ERROR: Final = 1
#: Wrong usage, wrong settings, or something that cannot be reached.
WRONG_USAGE: Final = 2
CANNOT_CONNECT: Final = 2
NOT_AUTHORISED: Final = 3
#: What shells report for a program that Ctrl-C ended.
INTERRUPTED: Final = 130


class Failure(click.ClickException):
    """A command cannot do what it was asked; the message, a sentence without its full stop, says what to do."""

    exit_code = ERROR


class WrongUsage(Failure):
    """The command line, or what it names, is at fault."""

    exit_code = WRONG_USAGE


class CannotConnect(Failure):
    """Something that the command needs cannot be reached."""

    exit_code = CANNOT_CONNECT


class NotAuthorised(Failure):
    """The server refuses the credential."""

    exit_code = NOT_AUTHORISED


def explain(error: BaseException) -> tuple[str, int]:
    """Give the line for stderr (empty where nothing needs to be said) and the exit code."""
    error = _only(error)
    match error:
        case click.UsageError():
            found = _usage(error), WRONG_USAGE
        case click.ClickException():
            found = error.format_message(), error.exit_code
        case click.Abort() | KeyboardInterrupt():
            found = "", INTERRUPTED
        case SettingsError() | BadDsn() | LogError():
            found = str(error), WRONG_USAGE
        case Unavailable():
            found = str(error), CANNOT_CONNECT
        case DatabaseError() | CryptoError():
            found = str(error), ERROR
        case OSError():
            found = _operating_system(error), ERROR
        case _:
            words = f"internal error: {type(error).__name__}: {error}; run again with --debug for the details"
            found = words, ERROR
    return found


def _only(error: BaseException) -> BaseException:
    """Take a single error out of the groups that nurseries put round it."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def _usage(error: click.UsageError) -> str:
    message = error.format_message().rstrip(".")
    if error.ctx is None:
        return message
    see = " See" if message.endswith("?") else "; see"
    return f"{message}{see} '{error.ctx.command_path} --help'"


def _operating_system(error: OSError) -> str:
    reason = error.strerror or type(error).__name__
    return f"{error.filename}: {reason}" if error.filename else reason
