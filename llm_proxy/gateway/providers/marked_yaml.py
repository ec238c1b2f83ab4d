"""YAML in which every value knows its line, so that every mistake can be told with the place where it stands."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection
from operator import itemgetter
from pathlib import Path
from typing import TypeVar

import yaml
from attrs import define, field
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from llm_proxy.config import Mistake

T = TypeVar("T")

_NULL = "tag:yaml.org,2002:null"
_BOOL = "tag:yaml.org,2002:bool"


@define
class Member:
    """A member of a mapping: its key, the value, and what the reader calls it (`apis.openai.auth`)."""

    name: str
    key: Node
    value: Node
    place: str


@define
class Document:
    """A YAML file that is being read. Every method reports what does not fit, and returns nothing in its place."""

    source: str
    _found: list[tuple[int, str]] = field(factory=list)

    @property
    def problems(self) -> list[Mistake]:
        """What was reported so far, in order of lines."""
        return [
            Mistake(f"{self.source}, line {line}", reason) for line, reason in sorted(self._found, key=itemgetter(0))
        ]

    def report(self, node: Node, reason: str) -> None:
        """Note that what stands at `node` is wrong."""
        self._found.append((node.start_mark.line + 1, reason))

    def read(self) -> Node | None:
        """The root of the file; None where there is none to go on with."""
        try:
            text = Path(self.source).read_text(encoding="utf-8")
            root: Node | None = yaml.compose(text, Loader=yaml.SafeLoader)
        except OSError as error:
            self._found.append((1, f"the file cannot be read: {error.strerror}"))
        except UnicodeDecodeError:
            self._found.append((1, "the file is not UTF-8 text"))
        except yaml.MarkedYAMLError as error:
            line = error.problem_mark.line + 1 if error.problem_mark else 1
            self._found.append((line, f"this is not YAML: {error.problem}"))
        except (yaml.YAMLError, RecursionError):
            self._found.append((1, "this is not YAML: it holds control characters, or is nested too deeply"))
        else:
            if root is None:
                self._found.append((1, "the file is empty; it needs apis, with at least one provider"))
            return root
        return None

    def members(self, node: Node, place: str, known: Collection[str] = ()) -> dict[str, Member]:
        """The members of a mapping by name; names outside of `known` (where given) and double ones are reported."""
        if not isinstance(node, MappingNode):
            self.report(node, f"{place or 'the file'} is {_kind(node)}; it has to be a mapping of names to values")
            return {}
        members: dict[str, Member] = {}
        for key, value in node.value:
            name = key.value if isinstance(key, ScalarNode) else ""
            full = f"{place}.{name}" if place else name
            if not name:
                self.report(key, f"{place or 'the file'} has a key that is no name")
            elif known and name not in known:
                self.report(key, f"{full} is not known{nearest(name, known)}; allowed: {', '.join(known)}")
            elif name in members:
                first = members[name].key.start_mark.line + 1
                self.report(key, f"{full} is set twice, on line {first} already; keep one")
            elif isinstance(value, ScalarNode) and value.tag == _NULL:
                self.report(key, f"{full} has no value; give it one, or leave it out")
            else:
                members[name] = Member(name, key, value, full)
        return members

    def text(self, node: Node, place: str, allowed: str) -> str | None:
        """A single value, as text: truth values as in JSON, everything else as it is written."""
        if not isinstance(node, ScalarNode) or (node.tag == _NULL and not node.value):
            self.report(node, f"{place} is {_kind(node)}; allowed: {allowed}")
            return None
        value: str = node.value
        if node.tag == _BOOL:
            return "true" if yaml.SafeLoader.bool_values[value.lower()] else "false"
        return value

    def parsed(self, member: Member, parse: Callable[[str], T], allowed: str) -> T | None:
        """A single value, parsed; the words of a `ValueError` from `parse` become the report, or else `allowed`."""
        return self._parsed(member.value, member.place, parse, allowed)

    def parsed_list(self, member: Member, parse: Callable[[str], T], allowed: str) -> tuple[T, ...]:
        """A list of values, each parsed; an empty one is reported, because it would mean neither all nor nothing."""
        if not isinstance(member.value, SequenceNode):
            self.report(member.value, f"{member.place} is {_kind(member.value)}; it has to be a list: {allowed}")
            return ()
        if not member.value.value:
            self.report(member.value, f"{member.place} is empty; list at least one, or leave it out: {allowed}")
        found = [self._parsed(node, member.place, parse, allowed) for node in member.value.value]
        return tuple(value for value in found if value is not None)

    def _parsed(self, node: Node, place: str, parse: Callable[[str], T], allowed: str) -> T | None:
        text = self.text(node, place, allowed)
        if text is None:
            return None
        try:
            return parse(text)
        except ValueError as error:
            # A URL may hold a password where it must not, so nothing with an @ is shown back.
            shown = "the value" if "@" in text else repr(text)
            reason = f"does not fit: {error}" if str(error) else f"does not fit; allowed: {allowed}"
            self.report(node, f"{place}: {shown} {reason}")
            return None


def nearest(name: str, known: Collection[str]) -> str:
    """A hint at the known name that `name` was probably meant to be; empty where none is near."""
    found = difflib.get_close_matches(name.lower(), known, n=1)
    return f"; did you mean {found[0]}?" if found else ""


def _kind(node: Node) -> str:
    if isinstance(node, MappingNode):
        return "a mapping"
    if isinstance(node, SequenceNode):
        return "a list"
    return "empty" if node.tag == _NULL else "a single value"
