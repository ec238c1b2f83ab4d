"""What one request names, lists, creates and deletes of the objects at its provider."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from attrs import define

from llm_proxy.errors import BadRequest, InvalidJson, ParameterNotAllowed
from llm_proxy.gateway.http.json_members import JsonMembers
from llm_proxy.gateway.http.multipart import Multipart, refused
from llm_proxy.gateway.http.parameters import Parameters
from llm_proxy.gateway.objects import references
from llm_proxy.gateway.objects.references import Lines, References
from llm_proxy.gateway.objects.table import TABLE, ObjectEndpoint
from llm_proxy.ledger import Named, Objects

if TYPE_CHECKING:
    from llm_proxy.gateway.inbound import Inbound


_IN_PARTS = (
    "The input of a batch cannot be uploaded in parts while several projects use the credential of this provider,"
    " because its lines are checked. Upload it with POST /v1/files"
)


@define(eq=False)
class RequestObjects:
    """The objects of one request, as far as it was read.

    Attributes:
        endpoint: the row of its endpoint.
        in_path: the ids in its path.
        in_query: the ids in its query.
        in_body: the ids in its body.
        unread: its body may name objects, and was not read.
        fault: why its body cannot be read reliably.
        yields: where its answer has the ids of objects that it creates.
    """

    endpoint: ObjectEndpoint
    in_path: tuple[str, ...]
    unread: bool
    yields: Mapping[str, str]
    in_query: tuple[str, ...] = ()
    in_body: tuple[str, ...] = ()
    fault: BadRequest | None = None

    @classmethod
    def of(cls, inbound: Inbound) -> RequestObjects:
        """What is known by the head of a request."""
        endpoint, in_path = TABLE.find(inbound.method, inbound.route.path)
        in_query = references.of_query(inbound.query) if inbound.query and endpoint.hints else ()
        return cls(endpoint, in_path, bool(endpoint.hints) and inbound.has_body, endpoint.yields, in_query)

    @property
    def json(self) -> type[JsonMembers]:
        """The reader of a JSON body."""
        return References if self.unread else JsonMembers

    @property
    def form(self) -> type[Multipart]:
        """The reader of a form."""
        return Lines if self.unread and self.endpoint.lines else Multipart

    @property
    def named(self) -> Named | None:
        """What is judged; None if there is nothing to judge."""
        ids = self.in_path + self.in_query + self.in_body
        fault = self.fault if self.unread else None
        unread = self.unread and fault is None
        if not (ids or unread or fault or self.endpoint.account):
            return None
        return Named(ids, self.endpoint.account, self.endpoint.known, unread, fault)

    def may_name(self, inbound: Inbound) -> bool:
        """Whether a body that has arrived must be read; otherwise it names nothing."""
        if not self.unread and not self.endpoint.requested:
            return False
        endpoint, body = self.endpoint, inbound.complete() or b""
        if not references.may_hide(inbound.content, body):
            if endpoint.requested and not references.has_any(endpoint.requested, body):
                self.yields = {}
            if not references.has_any(endpoint.hints, body):
                self.unread = False
        return self.unread

    def take(self, reader: JsonMembers | Multipart, found: Parameters) -> None:
        """Take the ids in a body that was read whole."""
        if not self.unread:
            return
        if self.endpoint.lines and any("batch" in (value or "batch") for value in found.get("purpose", ())):
            if not isinstance(reader, Lines):
                self.fault = ParameterNotAllowed(_IN_PARTS, param="purpose")
            elif reader.files != len(found.get("file", ())):
                # A field without a file name, which the provider may take for a file.
                self.fault = refused()
            elif reader.fault is not None:
                self.fault = InvalidJson(f"A line of the file cannot be checked: {reader.fault.message}")
            else:
                self.in_body, self.unread = tuple(reader.ids), False
            return
        self.in_body = tuple(reader.ids) if isinstance(reader, References) else references.of_form(found)
        self.unread = False

    @property
    def usage_of(self) -> str:
        """The object whose usage the answer may have, empty if it cannot."""
        return self.in_path[-1] if self.endpoint.usage else ""

    def deleted(self, status: int | None) -> Objects:
        """The object that the request has deleted, if the provider answered with this status."""
        if not self.endpoint.deletes or status is None or not 200 <= status < 300:
            return ()
        return ((self.in_path[-1], ""),)
