from __future__ import annotations

import errno
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from db.errors import BadDsn, Contention, SchemaMismatch, Unavailable
from llm_proxy import __version__
from llm_proxy.cli.failures import CannotConnect, CommandFailed, NotAuthorised, WrongUsage, explain
from llm_proxy.cli.program import COMMANDS, Command, program
from llm_proxy.config import SettingsError
from llm_proxy.secrets.encryption import KeyRingError
from tests.cli.conftest import Run


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> list[BaseException]:
    """A command `fail` that raises what the test puts into the list."""
    errors: list[BaseException] = []

    @click.command(cls=Command)
    @click.option("--number", type=int)
    def fail(number: int | None) -> None:
        raise errors[0]

    find = type(program).get_command
    monkeypatch.setattr(
        type(program),
        "get_command",
        lambda self, context, name: fail if name == "fail" else find(self, context, name),
    )
    return errors


@pytest.mark.parametrize(
    ("error", "line", "code"),
    [
        (CommandFailed("it went wrong; do this"), "it went wrong; do this", 1),
        (WrongUsage("not like this"), "not like this", 2),
        (CannotConnect("nobody there"), "nobody there", 2),
        (NotAuthorised("go away"), "go away", 3),
        (SettingsError(["WORKERS='0': allowed: more"]), "WORKERS='0': allowed: more", 2),
        (BadDsn("DATABASE_URL is odd"), "DATABASE_URL is odd", 2),
        (Unavailable("The database is away."), "The database is away.", 2),
        (Contention("Too busy."), "Too busy.", 1),
        (SchemaMismatch("Too old."), "Too old.", 1),
        (KeyRingError("the key file is damaged"), "the key file is damaged", 1),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "/x"), "/x: No such file or directory", 1),
        (
            ValueError("surprise"),
            "internal error: ValueError: surprise; run again with --debug for the details",
            1,
        ),
        (BaseExceptionGroup("", [BaseExceptionGroup("", [CommandFailed("inside")])]), "inside", 1),
    ],
)
def test_an_error_is_one_line_and_an_exit_code(
    run: Run, failing: list[BaseException], error: BaseException, line: str, code: int
) -> None:
    failing.append(error)

    result = run("fail")

    assert (result.stderr, result.stdout, result.exit_code) == (f"error: {line}\n", "", code)


def test_several_errors_at_once_are_internal() -> None:
    message, code = explain(ExceptionGroup("two", [ValueError("a"), KeyError("b")]))

    assert message.startswith("internal error: ExceptionGroup: two")
    assert code == 1


@pytest.mark.parametrize("arguments", [("--debug", "fail"), ("fail", "--debug")])
def test_debug_shows_the_traceback_too(run: Run, failing: list[BaseException], arguments: tuple[str, ...]) -> None:
    failing.append(CommandFailed("it went wrong"))

    result = run(*arguments)

    assert result.stderr.startswith("Traceback (most recent call last)")
    assert result.stderr.endswith("error: it went wrong\n")
    assert result.exit_code == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt(), click.Abort()])
def test_an_interrupt_says_nothing(run: Run, failing: list[BaseException], error: BaseException) -> None:
    failing.append(error)

    result = run("fail")

    assert (result.stderr, result.exit_code) == ("", 130)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("nonsense",), "No such command 'nonsense'; see 'llm-proxy --help'"),
        (("fail", "--nmber"), "No such option '--nmber'. Did you mean '--number'? See 'llm-proxy fail --help'"),
        (("fail", "extra"), "Got unexpected extra argument (extra); see 'llm-proxy fail --help'"),
        (
            ("fail", "--number", "x"),
            "Invalid value for '--number': 'x' is not a valid integer; see 'llm-proxy fail --help'",
        ),
    ],
)
def test_wrong_usage_is_one_line_too(
    run: Run, failing: list[BaseException], arguments: tuple[str, ...], line: str
) -> None:
    result = run(*arguments)

    assert (result.stderr, result.exit_code) == (f"error: {line}\n", 2)


def test_without_a_command_the_help_is_shown(run: Run) -> None:
    result = run()

    assert result.stderr.startswith("Usage: llm-proxy [OPTIONS] COMMAND [ARGS]...")
    assert result.exit_code == 2


def test_the_version(run: Run) -> None:
    result = run("--version")

    assert (result.stdout, result.exit_code) == (f"llm-proxy {__version__}\n", 0)


def test_a_reader_that_leaves_early_causes_no_traceback() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "llm_proxy", "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()

    with process.stderr:
        assert process.stderr.read() == b""
    assert process.wait() == 1


def test_every_command_and_option_has_help() -> None:
    for command in _commands(program, click.Context(program)):
        assert command.help, command.name
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert parameter.help, f"{command.name} {parameter.name}"
        assert (
            command.name is None
            or any(parameter.name == "debug" for parameter in command.params)
            or isinstance(command, click.Group)
        )


def _commands(command: click.Command, context: click.Context) -> Iterator[click.Command]:
    yield command
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None
            yield from _commands(found, context)


def test_the_help_of_the_program_has_the_first_line_of_each_command() -> None:
    context = click.Context(program)
    commands = {name: program.get_command(context, name) for name in program.list_commands(context)}
    assert {name: command.get_short_help_str(100) for name, command in commands.items() if command} == COMMANDS


@pytest.mark.parametrize(
    ("arguments", "not_imported"),
    [
        ("--help", ("quart", "hypercorn", "sqlalchemy", "httpx", "cryptography", "trio", "genai_prices")),
        ("db check", ("quart", "hypercorn", "httpx", "llm_proxy.gateway", "llm_proxy.web", "llm_proxy.prices")),
        ("migrate status", ("quart", "hypercorn", "httpx", "llm_proxy.gateway")),
        ("manage project list", ("quart", "hypercorn", "sqlalchemy", "llm_proxy.gateway")),
        ("benchmark --help", ("quart", "hypercorn", "sqlalchemy", "llm_proxy.gateway")),
    ],
)
def test_a_command_imports_only_what_it_needs(
    folder: Path, run: Run, arguments: str, not_imported: tuple[str, ...]
) -> None:
    code = (
        "import sys\n"
        "from llm_proxy.cli.program import program\n"
        "try:\n"
        f"    program.main({arguments.split()!r})\n"
        "except SystemExit as end:\n"
        "    print('exit code', end.code, file=sys.stderr)\n"
        f"print('imported', sorted(set({not_imported!r}) & set(sys.modules)), file=sys.stderr)\n"
    )
    if arguments == "db check":
        (folder / ".env").write_text("DATABASE_PATH=proxy.db\n")
        assert run("migrate", "up").exit_code == 0
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stderr.splitlines()[-1] == "imported []"
    if arguments in ("--help", "db check"):
        assert done.stderr.splitlines()[-2] == "exit code 0"


def test_the_short_helps_fit_into_their_lists(run: Run) -> None:
    listed = run("--help").stdout.partition("Commands:\n")[2].splitlines()

    assert [line.split()[0] for line in listed] == [
        "benchmark",
        "db",
        "demo",
        "keys",
        "ledger",
        "manage",
        "migrate",
        "prices",
        "reload",
        "server",
    ]
    groups = [
        ("--help",),
        *((name, "--help") for name in ("db", "ledger", "manage", "migrate", "prices")),
        *(("manage", name, "-h") for name in ("limit", "token")),
    ]
    for group in groups:
        assert "..." not in run(*group).stdout.partition("Commands:\n")[2]


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("server", "--addr --db --workers --config --debug --help"),
        ("demo", "--once --addr --debug --help"),
        ("migrate up", "--db --config --debug --help"),
        ("migrate down", "--to --allow-live --yes --db --config --debug --help"),
        ("migrate status", "--json --db --config --debug --help"),
        ("ledger verify", "--repair --json --db --config --debug --help"),
        ("db check", "--json --db --config --debug --help"),
        ("manage project list", "--json --manage-api-base-url --management-token --config --debug --help"),
        ("manage token get", "--json --manage-api-base-url --management-token --config --debug --help"),
    ],
)
def test_the_help_names_the_options(run: Run, command: str, options: str) -> None:
    shown = run(*command.split(), "--help").stdout

    assert re.findall(r"^ +(?:-h, )?(--[a-z-]+)", shown, re.MULTILINE) == options.split()
    assert shown.startswith(f"Usage: llm-proxy {command} [OPTIONS]")


def test_a_misspelt_variable_is_pointed_out_and_does_not_stop_anything(run: Run) -> None:
    result = run("migrate", "version", env={"DATABASE_POOLSIZE": "3"})

    assert result.exit_code == 0
    assert result.stderr == (
        "warning: DATABASE_POOLSIZE has no effect: there is no such setting; did you mean DATABASE_POOL_SIZE?\n"
    )


def test_a_file_of_settings_that_is_named_must_be_there(run: Run) -> None:
    result = run("migrate", "version", "--config", "none.env")

    assert result.stderr == "error: none.env: the file cannot be read: No such file or directory\n"
    assert result.exit_code == 2


def test_a_dotenv_file_is_read_from_the_current_folder(run: Run, folder: Path) -> None:
    (folder / ".env").write_text("DATABASE_PATH=here.db\n")

    run("migrate", "up")

    assert (folder / "here.db").exists()


def test_a_sqlite_file_contradicts_the_address_of_a_server(run: Run) -> None:
    env = {"DB_DRIVER": "postgres", "DATABASE_URL": "postgres://u:canary@127.0.0.1:9/d"}

    result = run("migrate", "version", "--db", "x.db", env=env)

    assert result.exit_code == 2
    assert result.stderr == (
        "error: DB_DRIVER is sqlite but DATABASE_URL is for PostgreSQL: set DB_DRIVER=postgres, or remove the URL\n"
    )
