"""Reads a YAML file into msgspec structs, and reports every mistake with its path and line."""

from __future__ import annotations

from operator import itemgetter
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import msgspec
import yaml
from attrs import Factory, define
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from llm_proxy.config import Mistake
from llm_proxy.config.kinds import InvalidValue, Kind, assignment, did_you_mean

S = TypeVar("S", bound=msgspec.Struct)

#: Keys of mappings and indices of lists, from the root.
Place = tuple[str | int, ...]


@define
class Document:
    """A YAML file.

    Attributes:
        name: the path of the file.
        data: its content as dicts, lists, text and None; scalars are text as written, except that booleans are `true`
            and `false` as in JSON.
    """

    name: str
    data: Any = None
    _root: Node | None = None
    _reports: list[tuple[int, str]] = Factory(list)

    @property
    def mistakes(self) -> list[Mistake]:
        """All mistakes, in order of lines."""
        return [
            Mistake(f"{self.name}, line {line}", reason) for line, reason in sorted(self._reports, key=itemgetter(0))
        ]

    def report(self, place: Place, reason: str) -> None:
        """Report a mistake at a place, or at the next place above it that exists."""
        line = self._root.start_mark.line if self._root else 0
        node = self._root
        for part in place:
            if isinstance(node, MappingNode):
                found = [(key.start_mark.line, value) for key, value in node.value if key.value == part]
            else:
                found = [(value.start_mark.line, value) for value in [node.value[part]]] if node else []
            if not found:
                break
            line, node = found[0]
        self._reports.append((line + 1, reason))

    def read(self, struct: type[S]) -> S | None:
        """Read the whole file. Wrong values are missing or None in the result; None if the file is not a mapping."""
        try:
            self._root = yaml.compose(Path(self.name).read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
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
            if self._root is not None:
                self.data = self._plain(self._root, "", {})
                found: S | None = self._convert(self.data, struct, ())
                return found
            self.report((), "the file is empty; it needs apis, with at least one provider")
        return None

    def _plain(self, node: Node, name: str, known: dict[int, Any]) -> Any:
        """Make plain data of a node; `known` has the nodes that were seen, because an alias may contain itself."""
        if id(node) in known:
            return known[id(node)]
        if isinstance(node, SequenceNode):
            items = known[id(node)] = []
            items += [self._plain(item, name, known) for item in node.value]
            return items
        if isinstance(node, MappingNode):
            members = known[id(node)] = {}
            lines: dict[str, int] = {}
            for key, value in node.value:
                line = key.start_mark.line + 1
                if not isinstance(key, ScalarNode) or not key.value:
                    self._reports.append((line, f"{name or 'the file'} has a key that is not a name"))
                elif key.value in lines:
                    first = f"{_join(name, key.value)} is set twice, on line {lines[key.value]} already; remove one"
                    self._reports.append((line, first))
                else:
                    lines[key.value] = line
                    members[key.value] = self._plain(value, _join(name, key.value), known)
            return members
        if node.tag == "tag:yaml.org,2002:bool":
            return "true" if yaml.SafeLoader.bool_values[node.value.lower()] else "false"
        return None if node.tag == "tag:yaml.org,2002:null" else node.value

    def _convert(self, value: Any, expected: Any, place: Place) -> Any:
        """Convert plain data to a type: a struct, or a dict, tuple or optional of `Annotated[…, Kind]`."""
        name = ".".join(part for part in place if isinstance(part, str))
        origin, arguments = get_origin(expected), get_args(expected)
        if value is None:
            self.report(place, f"{name} has no value; set one, or remove the key")
        elif origin in (Union, UnionType):
            return self._convert(value, arguments[0], place)
        elif origin is Annotated:
            return self._parse(value, next(kind for kind in arguments if isinstance(kind, Kind)), name, place)
        elif origin is tuple:
            items = value if isinstance(value, list) else [value]
            if not items:
                self.report(place, f"{name} is empty; list at least one value, or remove the key")
            found = [self._convert(item, arguments[0], (*place, index)) for index, item in enumerate(items)]
            return tuple(item for item in found if item is not None)
        elif not isinstance(value, dict):
            self.report(place, f"{name or 'the file'} is {_shape(value)}; it must be a mapping of names to values")
        elif origin is dict:
            return {key: self._convert(item, arguments[1], (*place, key)) for key, item in value.items()}
        else:
            return self._struct(value, expected, place)
        return None

    def _struct(self, value: dict[str, Any], struct: type[S], place: Place) -> S:
        types = {field.name: field.type for field in msgspec.structs.fields(struct)}
        given: dict[str, Any] = {}
        for key, item in value.items():
            if key in types:
                given[key] = self._convert(item, types[key], (*place, key))
            else:
                name = ".".join(map(str, (*place, key)))
                reason = f"{name} is not known{did_you_mean(key, types)}; allowed: {', '.join(types)}"
                self.report((*place, key), reason)
        return struct(**given)

    def _parse(self, value: Any, kind: Kind[Any], name: str, place: Place) -> Any:
        if not isinstance(value, str):
            self.report(place, f"{name} is {_shape(value)}; allowed: {kind.allowed}")
            return None
        try:
            return kind.read(value)
        except InvalidValue as error:
            self.report(place, f"{assignment(name, value)}: {error}")
            return None


def _join(name: str, key: str) -> str:
    return f"{name}.{key}" if name else key


def _shape(value: Any) -> str:
    return "a mapping" if isinstance(value, dict) else "a list" if isinstance(value, list) else "a single value"
