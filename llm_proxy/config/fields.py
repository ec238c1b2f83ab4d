"""How a setting is declared, and how its value is found among flags, environment, `.env` file and defaults."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import attrs

from llm_proxy.config.kinds import Kind, Unfit
from llm_proxy.config.problems import Problem
from llm_proxy.secrets import private_file

T = TypeVar("T")

#: The key of `Field` in the metadata of an attrs attribute.
_KEY = "setting"

#: Longest part of a wrong value that is shown back.
_SHOWN = 80


@attrs.frozen
class Field:
    """What is said about a setting beside its type.

    `default` is the text that a user would write, None where the setting has none. `flag` is the command-line option
    that sets it too. The value of a `secret` is never shown, and may come from the file that `NAME_FILE` names.
    """

    section: str
    kind: Kind[Any]
    default: str | None
    help: str
    secret: bool
    flag: str | None


@attrs.frozen
class Section:
    """A group of settings that belong together in the reference."""

    title: str

    def setting(self, kind: Kind[T], default: str, meaning: str, *, flag: str | None = None) -> T:
        """Declare a setting with a default, given as a user would write it."""
        return cast("T", self._field(Field(self.title, kind, default, meaning, secret=False, flag=flag)))

    def optional(self, kind: Kind[T], meaning: str, *, secret: bool = False, flag: str | None = None) -> T | None:
        """Declare a setting that is None where it is not set."""
        return cast("T | None", self._field(Field(self.title, kind, None, meaning, secret=secret, flag=flag)))

    @staticmethod
    def _field(field: Field) -> Any:
        default = None if field.default is None else field.kind.parse(field.default)
        return attrs.field(default=default, repr=_censored if field.secret else True, metadata={_KEY: field})


def _censored(value: object) -> str:
    return "None" if value is None else "'(hidden)'"


def declared(settings_class: type[Any]) -> dict[str, Field]:
    """The declared settings of a class by their names in the environment, in order of declaration."""
    return {
        attribute.name.upper(): attribute.metadata[_KEY]
        for attribute in attrs.fields(settings_class)
        if _KEY in attribute.metadata
    }


@attrs.frozen
class Layer:
    """One place where settings come from: `place` is how problems refer to it, empty for the environment."""

    place: str
    values: Mapping[str, str]

    def get(self, name: str) -> str:
        """The trimmed text of a variable. An empty one counts as not set, as `${NAME:-}` in Compose files means it."""
        return self.values.get(name, "").strip()


@attrs.frozen
class Found:
    """What the layers say: the values of the settings that are set, by name, and what is wrong with the others.

    `given` names every setting that some layer has, rightly or wrongly.
    """

    values: dict[str, Any]
    problems: list[Problem]
    given: set[str]


def find(fields: Mapping[str, Field], layers: list[Layer]) -> Found:
    """Take each setting from the first layer that has it. A secret's `NAME_FILE` counts as much as its `NAME`."""
    found = Found({}, [], set())
    for name, field in fields.items():
        for layer in layers:
            text, file = layer.get(name), layer.get(f"{name}_FILE") if field.secret else ""
            if not text and not file:
                if layer.place == FLAGS and name in layer.values:
                    # Whoever types a flag means something by it, such as a variable that turns out to be empty.
                    found.problems.append(Problem(_subject(name, field, text, layer), _EMPTY))
                continue
            found.given.add(name)
            try:
                found.values[name] = _parse(name, field, text, file, layer)
            except _WrongError as error:
                found.problems.append(error.problem)
            break
    return found


class _WrongError(Exception):
    def __init__(self, subject: str, reason: str) -> None:
        self.problem = Problem(subject, reason)


def _parse(name: str, field: Field, text: str, file: str, layer: Layer) -> Any:
    if text and file:
        raise _WrongError(f"{name} and {name}_FILE{layer.place}", "both are set; keep one")
    if file:
        subject = f"{name}_FILE={_quoted(file)}{layer.place}"
        text = _read_secret(subject, file)
    else:
        subject = _subject(name, field, text, layer)
    try:
        return field.kind.parse(text)
    except Unfit as error:
        raise _WrongError(subject, str(error)) from None
    except ValueError:
        raise _WrongError(subject, f"allowed: {field.kind.allowed}") from None


#: The place of the layer that holds command-line flags.
FLAGS = " (flag)"

_EMPTY = "it is empty; give it a value, or leave it out"


def _subject(name: str, field: Field, text: str, layer: Layer) -> str:
    """What a problem is about: the flag or variable, and the wrong value where that can be shown."""
    is_flag = layer.place == FLAGS
    named, place = (field.flag or name, "") if is_flag else (name, layer.place)
    # What has an @ in it may be an address with a password, whichever setting it has got into.
    if field.secret or "@" in text:
        return f"{named}{place} (value hidden)"
    return f"{named} {_quoted(text)}" if is_flag else f"{named}={_quoted(text)}{place}"


def _quoted(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "…")


def _read_secret(subject: str, file: str) -> str:
    try:
        text = Path(file).read_text(encoding="utf-8").strip()
        private_file.check(Path(file))
    except private_file.ExposedFile as error:
        raise _WrongError(subject, f"the file {error}") from None
    except UnicodeDecodeError:
        raise _WrongError(subject, "the file is not UTF-8 text") from None
    except OSError as error:
        raise _WrongError(subject, f"the file cannot be read: {error.strerror}") from None
    if not text:
        raise _WrongError(subject, "the file is empty")
    return text


def near_misses(fields: Mapping[str, Field], layers: list[Layer]) -> list[str]:
    """Sentences about variables that look like a misspelt setting and therefore do nothing."""
    secrets = {f"{name}_FILE" for name, field in fields.items() if field.secret}
    known = [*fields, *secrets]
    sentences: list[str] = []
    for layer in layers:
        for name in sorted(set(layer.values) - set(known)):
            if name.removesuffix("_FILE") in fields:
                sentences.append(f"{name}{layer.place} has no effect: only secrets are read from files")
                continue
            close = difflib.get_close_matches(name, known, n=1, cutoff=0.88)
            if close:
                there = f"{name}{layer.place}"
                sentences.append(f"{there} has no effect: there is no such setting; did you mean {close[0]}?")
    return sentences
