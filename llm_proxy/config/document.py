"""Reads a YAML file into msgspec structs, and reports every mistake with its path and line."""

from __future__ import annotations

from operator import itemgetter
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import msgspec
import yaml
from attrs import Factory, define
from yaml.nodes import Node, ScalarNode, SequenceNode

from llm_proxy.config.kinds import InvalidValue, Kind, assignment, did_you_mean

S = TypeVar("S", bound=msgspec.Struct)

#: Keys of mappings and indices of lists, from the root.
Place = tuple[str | int, ...]


@define
class Document:
    """A YAML file.

    Attributes:
        name: the path of the file.
        data: dicts, lists, text and None. A scalar is its text, except that booleans are `true` and `false`.
    """

    name: str
    data: Any = None
    _lines: dict[Place, int] = Factory(lambda: {(): 1})
    _reports: list[tuple[int, str]] = Factory(list)
    _wrong: list[Place] = Factory(list)

    @property
    def mistakes(self) -> list[str]:
        found = sorted(self._reports, key=itemgetter(0))
        return [f"{self.name}, line {line}: {reason}" for line, reason in found]

    def report(self, place: Place, reason: str) -> None:
        """Report a mistake, on the line of its place or of the nearest place above."""
        self._wrong.append(place)
        while place not in self._lines:
            place = place[:-1]
        self._reports.append((self._lines[place], reason))

    def is_wrong(self, place: Place) -> bool:
        """Whether there is a mistake in the value at a place."""
        return any(wrong[: len(place)] == place for wrong in self._wrong)

    def read(self, struct: type[S], needs: str) -> S | None:
        """Read the whole file. Wrong values are missing or None in the result; None if the file is not a mapping.

        `needs` says what must be in the file, for the report about an empty one.
        """
        try:
            root = yaml.compose(Path(self.name).read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        except OSError as error:
            self.report((), f"the file cannot be read: {error.strerror}")
        except UnicodeDecodeError:
            self.report((), "the file is not UTF-8 text")
        except yaml.MarkedYAMLError as error:
            line = error.problem_mark.line + 1 if error.problem_mark else 1
            self._reports.append((line, f"this is not YAML: {error.problem}"))
        except (yaml.YAMLError, RecursionError):
            self.report((), "this is not YAML: it contains control characters, or is nested too deeply")
        else:
            self.data = None if root is None else self._plain(root, (), {})
            if self.data is not None:
                found: S | None = self._convert(self.data, struct, ())
                return found
            self.report((), f"the file is empty; it needs {needs}")
        return None

    def _plain(self, node: Node, place: Place, known: dict[int, Any]) -> Any:
        """Make plain data of a node. `known` has the nodes that were seen, because an alias may contain itself."""
        if id(node) in known:
            return known[id(node)]
        if isinstance(node, ScalarNode):
            # A tag that is written out may be on any text.
            if node.tag == "tag:yaml.org,2002:bool" and node.value.lower() in yaml.SafeLoader.bool_values:
                return "true" if yaml.SafeLoader.bool_values[node.value.lower()] else "false"
            return None if node.tag == "tag:yaml.org,2002:null" else node.value
        if isinstance(node, SequenceNode):
            items = known[id(node)] = []
            for index, item in enumerate(node.value):
                self._lines[*place, index] = item.start_mark.line + 1
                items.append(self._plain(item, (*place, index), known))
            return items
        members = known[id(node)] = {}
        for key, value in node.value:
            line, inner = key.start_mark.line + 1, (*place, str(key.value))
            if not isinstance(key, ScalarNode) or not key.value:
                self._reports.append((line, f"{_dotted(place)} has a key that is not a name"))
            elif key.value in members:
                first = self._lines[inner]
                self._reports.append((line, f"{_dotted(inner)} is set twice, on line {first} already; remove one"))
            else:
                self._lines[inner] = line
                members[key.value] = self._plain(value, inner, known)
        return members

    def _convert(self, value: Any, expected: Any, place: Place) -> Any:
        """Convert plain data to a type: a struct, or a dict, tuple or optional of `Annotated[…, Kind]`."""
        origin, arguments = get_origin(expected), get_args(expected)
        if value is None:
            self.report(place, f"{_dotted(place)} has no value; set one, or remove the key")
        elif origin in (Union, UnionType):
            return self._convert(value, arguments[0], place)
        elif origin is Annotated:
            return self._parse(value, next(kind for kind in arguments if isinstance(kind, Kind)), place)
        elif origin is tuple:
            items = value if isinstance(value, list) else [value]
            if not items:
                self.report(place, f"{_dotted(place)} is empty; list at least one value, or remove the key")
            places = [(*place, index) for index in range(len(items))] if items is value else [place]
            found = [self._convert(item, arguments[0], where) for where, item in zip(places, items, strict=True)]
            return tuple(item for item in found if item is not None)
        elif not isinstance(value, dict):
            self.report(place, f"{_dotted(place)} is {_form(value)}; it must be a mapping of names to values")
        elif origin is dict:
            return {key: self._convert(item, arguments[1], (*place, key)) for key, item in value.items()}
        else:
            return self._struct(value, expected, place)
        return None

    def _struct(self, value: dict[str, Any], struct: type[S], place: Place) -> S:
        fields = {field.encode_name: field for field in msgspec.structs.fields(struct)}
        given: dict[str, Any] = {}
        for key, item in value.items():
            inner = (*place, key)
            if key in fields:
                given[fields[key].name] = self._convert(item, fields[key].type, inner)
            else:
                hint = f"{did_you_mean(key, fields)}; allowed: {', '.join(fields)}"
                self.report(inner, f"{_dotted(inner)} is not known{hint}")
        return struct(**given)

    def _parse(self, value: Any, kind: Kind[Any], place: Place) -> Any:
        if not isinstance(value, str):
            self.report(place, f"{_dotted(place)} is {_form(value)}; allowed: {kind.allowed}")
            return None
        try:
            return kind.read(value)
        except InvalidValue as error:
            self.report(place, f"{assignment(_dotted(place), value, secret=kind.secret)}: {error}")
            return None


def _dotted(place: Place) -> str:
    return ".".join(part for part in place if isinstance(part, str)) or "the file"


def _form(value: Any) -> str:
    return "a mapping" if isinstance(value, dict) else "a list" if isinstance(value, list) else "a single value"
