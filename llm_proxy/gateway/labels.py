"""Labels of requests: for whom and for what a request is. They come from its token and, where allowed, its headers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from attrs import define, field

from llm_proxy.config import kinds
from llm_proxy.errors import BadRequest
from llm_proxy.gateway.http.headers import Forwarded
from llm_proxy.logging.redaction import redact

if TYPE_CHECKING:
    from llm_proxy.gateway.http.headers import Headers
    from llm_proxy.gateway.inbound import Inbound
    from llm_proxy.ledger import Grant

#: The header with labels of any keys: `user=alice,feature=search`.
HEADER = b"x-llm-proxy-labels"


@define(eq=False)
class Labels:
    """Reads labels, and chooses those that the hourly sums distinguish.

    Attributes:
        headers: the key of the label in each header, by its name in lower case.
        keys: the keys that the hourly sums distinguish.
    """

    headers: Mapping[bytes, str]
    keys: Sequence[str]
    _forwarded: Forwarded = field(init=False)

    @_forwarded.default
    def _know_names(self) -> Forwarded:
        return Forwarded(frozenset((HEADER, *self.headers)))

    def read(self, inbound: Inbound) -> None:
        """Read the labels in a request's headers, and note which headers are not for the provider.

        A header with `_` in place of `-` is not read, and not for the provider either: some servers do not tell the two
        apart.
        """
        forwarded = self._forwarded
        taken = [field for field in inbound.headers if not forwarded[field[0]]]
        if taken:
            inbound.not_forwarded = frozenset(name for name, _ in taken)
            try:
                inbound.labels = self._parse(taken)
            except BadRequest as error:
                inbound.labels = error

    def _parse(self, fields: Headers) -> dict[str, str]:
        found: dict[str, str] = {}
        for name, value in fields:
            if b"_" in name:
                continue
            text = value.decode("utf-8", "replace").strip()
            pairs = (
                [part.partition("=")[::2] for part in text.split(",")]
                if name == HEADER
                else [(self.headers[name], text)]
            )
            for key, label in ((key.strip(), label.strip()) for key, label in pairs if key.strip() or label):
                if found.setdefault(key, label) != label:
                    raise BadRequest(f"The label {kinds.quoted(key)} has two values. Send one of them.")
            try:
                kinds.labels(found)
            except ValueError:
                allowed = f"Send {kinds.LABELS.allowed}, such as team=search,user=alice."
                raise BadRequest(f"The header {name.decode()} has labels that are not valid. {allowed}") from None
        secret = next((key for key, label in found.items() if redact(label) != label), None)
        if secret is not None:
            raise BadRequest(f"The label {kinds.quoted(secret)} contains a secret. Labels are stored in plain text.")
        return found

    def of(
        self, grant: Grant, sent: Mapping[str, str] | BadRequest
    ) -> tuple[dict[str, str] | None, dict[str, str] | None]:
        """The labels of an admitted request, and those of them that the hourly sums distinguish; None if none.

        Labels of the token override those that were sent.
        """
        labels = grant.token.labels
        if sent and not isinstance(sent, BadRequest) and grant.account.project.allow_request_labels:
            labels = {**sent, **(labels or {})}
        if labels is None or not self.keys:
            return labels, None
        return labels, {key: labels[key] for key in self.keys if key in labels} or None
