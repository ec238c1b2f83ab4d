"""Where settings come from: how one is declared, and how its value is found in flags, environment and `.env` file."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import attrs

from llm_proxy.config.kinds import InvalidValue, Kind, may_hide_secret, quoted
from llm_proxy.secrets import private_file

T = TypeVar("T")

#: The key of `Declaration` in the metadata of an attrs attribute.
_KEY = "setting"

#: The place of flags.
FLAGS = " (flag)"


class SettingsError(Exception):
    """The configuration is wrong.

    Attributes:
        mistakes: all of them: setting with value, or place in a file; then what is wrong and allowed, without secrets.
    """

    def __init__(self, mistakes: Sequence[str]) -> None:
        self.mistakes = tuple(mistakes)
        super().__init__(self.mistakes)

    def __str__(self) -> str:
        if len(self.mistakes) == 1:
            return self.mistakes[0]
        return "\n  ".join([f"{len(self.mistakes)} settings are wrong:", *self.mistakes])


@attrs.frozen
class Declaration:
    """What is declared about a setting beside its type.

    Attributes:
        section: heading in the reference.
        default: as a user would write it; None if the setting has no default.
        secret: whether the value is never shown, and may come from the file in `NAME_FILE`.
        flag: the command-line option that also sets it.
    """

    section: str
    kind: Kind[Any]
    default: str | None
    help: str
    secret: bool
    flag: str | None


@attrs.frozen
class Section:
    """A section of the reference."""

    title: str

    def setting(self, kind: Kind[T], default: str, meaning: str, *, flag: str | None = None) -> T:
        """Declare a setting with a default, written as a user would write it."""
        return cast("T", self._field(Declaration(self.title, kind, default, meaning, secret=False, flag=flag)))

    def optional(self, kind: Kind[T], meaning: str, *, secret: bool = False, flag: str | None = None) -> T | None:
        return cast("T | None", self._field(Declaration(self.title, kind, None, meaning, secret=secret, flag=flag)))

    @staticmethod
    def _field(declaration: Declaration) -> Any:
        default = None if declaration.default is None else declaration.kind.parse(declaration.default)
        show = _censored if declaration.secret else True
        return attrs.field(default=default, repr=show, metadata={_KEY: declaration})


def _censored(value: object) -> str:
    return "None" if value is None else "'(hidden)'"


def declared(settings_class: type[Any]) -> dict[str, Declaration]:
    return {attribute.name.upper(): attribute.metadata[_KEY] for attribute in attrs.fields(settings_class)}


@attrs.frozen
class Source:
    """Values by environment variable; `place` follows the name in messages: empty for the environment."""

    place: str
    values: Mapping[str, str]

    def get(self, name: str) -> str:
        """The value without space at its ends; empty if there is none."""
        return self.values.get(name, "").strip()


@attrs.define
class Found:
    """The values that are right, the mistakes, and the names of all settings that any source has."""

    values: dict[str, Any] = attrs.Factory(dict)
    mistakes: list[str] = attrs.Factory(list)
    given: set[str] = attrs.Factory(set)


def find(declarations: Mapping[str, Declaration], sources: list[Source]) -> Found:
    """Take each setting from the first source that has it. A secret's `NAME_FILE` counts as much as its `NAME`."""
    found = Found()
    for name, declaration in declarations.items():
        for source in sources:
            text, file = source.get(name), source.get(f"{name}_FILE") if declaration.secret else ""
            if not text and not file:
                if source.place == FLAGS and name in source.values:
                    # Probably a shell variable that is not set.
                    subject = _subject(name, declaration, text, source)
                    found.mistakes.append(f"{subject}: it is empty; set a value, or remove the flag")
                continue
            found.given.add(name)
            subject = f"{name}_FILE={quoted(file)}{source.place}" if file else _subject(name, declaration, text, source)
            try:
                if text and file:
                    subject = f"{name} and {name}_FILE{source.place}"
                    raise InvalidValue("both are set; remove one")  # noqa: TRY301 (one place makes a mistake of it)
                found.values[name] = declaration.kind.read(read_secret(Path(file)) if file else text)
            except InvalidValue as error:
                found.mistakes.append(f"{subject}: {error}")
            break
    return found


def _subject(name: str, declaration: Declaration, text: str, source: Source) -> str:
    """Name the flag or variable, and show the wrong value if it cannot be a secret."""
    is_flag = source.place == FLAGS
    named, place = (declaration.flag or name, "") if is_flag else (name, source.place)
    # A URL may have been set under the wrong name.
    if declaration.secret or may_hide_secret(text):
        return f"{named}{place} (value hidden)"
    return f"{named} {quoted(text)}" if is_flag else f"{named}={quoted(text)}{place}"


def read_secret(file: Path) -> str:
    """Read a file that the operator has made for a secret. Raises `InvalidValue`."""
    try:
        text = file.read_text(encoding="utf-8").strip()
        private_file.check(file)
    except private_file.ExposedFile as error:
        raise InvalidValue(f"the file {error}") from None
    except UnicodeDecodeError:
        raise InvalidValue("the file is not UTF-8 text") from None
    except OSError as error:
        raise InvalidValue(f"the file cannot be read: {error.strerror}") from None
    if not text:
        raise InvalidValue("the file is empty")
    return text


def find_misspelt(declarations: Mapping[str, Declaration], sources: list[Source]) -> list[str]:
    """Warn about variables that look like a misspelt setting and have no effect."""
    known = [*declarations, *(f"{name}_FILE" for name, declaration in declarations.items() if declaration.secret)]
    warnings: list[str] = []
    for source in sources:
        for name in sorted(set(source.values) - set(known)):
            if name.removesuffix("_FILE") in declarations:
                warnings.append(f"{name}{source.place} has no effect: only secrets are read from files")
            elif similar := difflib.get_close_matches(name, known, n=1, cutoff=0.88):
                hint = f"there is no such setting; did you mean {similar[0]}?"
                warnings.append(f"{name}{source.place} has no effect: {hint}")
    return warnings
