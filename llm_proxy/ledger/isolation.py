"""Which objects at a provider a project may reach, while other projects may use the same account there.

What a request names or lists is read from its path and its body before (`gateway/objects`). It is judged in the
transaction that admits the request:

| the request | nobody else uses the account | another project does |
|---|---|---|
| names an object of its project | passes | passes |
| names an object of another project | 404 `object_not_found` | 404 `object_not_found` |
| names an object that is not recorded | passes | 404 `object_not_found`, or passes with `allow_unknown_objects` |
| lists objects of the account, or its endpoint is not known | passes | 403 `list_not_isolated` |
| has a body in which ids cannot be read reliably | passes | refused with the reason |

Two projects use the same account at a provider if they use one credential there, or credentials whose keys have the
same last four characters: one key may have been stored twice. A credential without these characters counts as equal to
all.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from db import Connection
from db.queries import objects as queries
from db.records import Project
from llm_proxy.errors import BodyNotRead, ListNotIsolated, ObjectNotFound, ProxyError
from llm_proxy.logging.redaction import quoted

#: What is recorded as an id. Any other text is an object that is not recorded, and not every database can take it.
OBJECT_ID: Final = re.compile(r"[\x21-\x7e]{1,255}")


class Named(msgspec.Struct, frozen=True):
    """What a request names of the objects at its provider.

    Attributes:
        ids: the ids in its path and its body.
        account: it may list or reach any object of the account.
        known: whether that is because it does; otherwise because its endpoint is not known.
        unread: its body may name more, and was not read.
        fault: why its body cannot be read reliably.
    """

    ids: tuple[str, ...] = ()
    account: bool = False
    known: bool = True
    unread: bool = False
    fault: ProxyError | None = None

    @property
    def judged(self) -> bool:
        """Whether the database is needed to judge it as far as it was read."""
        return bool(self.ids or self.account or self.fault)


class Isolation(msgspec.Struct, frozen=True):
    """What the database knows about the objects that some requests name.

    Attributes:
        owners: the project of each recorded object, by provider and id.
        shared: pairs of project and provider where another project uses the same account.
    """

    owners: Mapping[tuple[str, str], str]
    shared: frozenset[tuple[str, str]]

    def refusal(self, named: Named, project: Project, provider: str) -> ProxyError | None:
        """Judge a request of this project, by the table above."""
        shared = (project.id, provider) in self.shared
        for object_id in named.ids:
            owner = self.owners.get((provider, object_id))
            if owner == project.id:
                continue
            if owner is not None or (shared and not project.allow_unknown_objects):
                return ObjectNotFound(
                    f"This token's project has no object with the id {quoted(object_id)} at this provider. Objects of"
                    " other projects, and those that were made elsewhere, cannot be used with this token"
                )
        if not shared:
            return None
        if named.account:
            return ListNotIsolated() if named.known else ListNotIsolated(_UNKNOWN_ENDPOINT)
        if named.unread:
            return BodyNotRead()
        return named.fault


_UNKNOWN_ENDPOINT = (
    "Several projects use the credential of this provider, and the proxy does not know which objects this endpoint"
    " reaches. Ask the operator for a credential that only your project uses"
)


def read(connection: Connection, requests: Iterable[tuple[Named, str, str]]) -> Isolation:
    """Read what is needed to judge requests, each with its project and its provider: two statements at most."""
    requests = list(requests)
    keys = {(provider, one) for named, _, provider in requests for one in named.ids if OBJECT_ID.fullmatch(one)}
    owners = queries.find_owners(connection, keys)
    doubtful = {
        (project, provider)
        for named, project, provider in requests
        if named.account or named.unread or named.fault or any((provider, one) not in owners for one in named.ids)
    }
    return Isolation(owners, queries.find_shared(connection, doubtful) if doubtful else frozenset())
