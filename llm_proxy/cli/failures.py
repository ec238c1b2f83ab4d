"""Exit codes, and errors as one line for the person at the terminal."""

from __future__ import annotations

from typing import Final

import click

DONE: Final = 0
ERROR: Final = 1
WRONG_USAGE: Final = 2
CANNOT_CONNECT: Final = 2
NOT_AUTHORISED: Final = 3
#: The exit code that shells report after Ctrl-C.
INTERRUPTED: Final = 130


class CommandFailed(click.ClickException):
    """A command failed. The message has no full stop and says what to do."""

    exit_code = ERROR


class WrongUsage(CommandFailed):
    """The command line, or something that it names, is wrong."""

    exit_code = WRONG_USAGE


class CannotConnect(CommandFailed):
    """A server that the command needs cannot be reached."""

    exit_code = CANNOT_CONNECT


class NotAuthorised(CommandFailed):
    """The server rejects the credential."""

    exit_code = NOT_AUTHORISED


def explain(error: BaseException) -> tuple[str, int]:
    """Return the line for stderr, which is empty if there is nothing to say, and the exit code."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        # Nurseries put an error into a group of one.
        error = error.exceptions[0]
    match error:
        case click.UsageError():
            return _usage(error), WRONG_USAGE
        case click.ClickException():
            return error.format_message(), error.exit_code
        case click.Abort() | KeyboardInterrupt():
            return "", INTERRUPTED
        case OSError():
            reason = error.strerror or type(error).__name__
            return f"{error.filename}: {reason}" if error.filename else reason, ERROR
    return _explain_ours(error)


def _explain_ours(error: BaseException) -> tuple[str, int]:
    # Imported only now: these modules are slow to import, and most commands end without such an error.
    from db.errors import BadDsn, DatabaseError, Unavailable  # noqa: PLC0415 (slow to import)
    from llm_proxy.config import SettingsError  # noqa: PLC0415 (slow to import)
    from llm_proxy.logging.sink import LogError  # noqa: PLC0415 (slow to import)
    from llm_proxy.secrets import SecretError  # noqa: PLC0415 (slow to import)

    match error:
        case SettingsError() | BadDsn() | LogError():
            return str(error), WRONG_USAGE
        case Unavailable():
            return str(error), CANNOT_CONNECT
        case DatabaseError() | SecretError():
            return str(error), ERROR
    return f"internal error: {type(error).__name__}: {error}; run again with --debug for the details", ERROR


def _usage(error: click.UsageError) -> str:
    message = error.format_message().rstrip(".")
    if error.ctx is None:
        return message
    see = " See" if message.endswith("?") else "; see"
    return f"{message}{see} '{error.ctx.command_path} --help'"
