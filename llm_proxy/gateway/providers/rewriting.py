"""The edit `rewrite_urls`: URLs of a provider in its answers become URLs of this proxy.

SDKs send their next request, with the client's token, to such a URL, so it must lead back to the proxy. The entry of a
provider lists the fields that have one. A value is replaced only if its scheme, host and port are those of the entry's
base URL: `https://api.anthropic.com/v1/x` becomes `PUBLIC_URL/anthropic/v1/x`, which always goes to the same entry.

If an answer may have such a field in its body, the body is held until it is complete, and it must be JSON that is not
compressed. Any other answer is not relayed: a URL that is not found in it would get the token.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final, Self

import msgspec
from attrs import define, frozen

from llm_proxy.config.kinds import HEADER_NAME, InvalidValue
from llm_proxy.errors import EndpointNotAllowed, ProxyError, UpstreamUnreachable
from llm_proxy.gateway.http.headers import content_of
from llm_proxy.gateway.http.json_members import MALFORMED
from llm_proxy.gateway.providers.endpoints import Endpoints

if TYPE_CHECKING:
    from llm_proxy.gateway.http.headers import HeaderList
    from llm_proxy.gateway.upstream.origin import Origin
    from llm_proxy.gateway.upstream.pool import UpstreamResponse

#: The name of this edit in `X-LLM-Proxy-Edited`.
EDIT: Final = b"rewrite_urls"
#: Maximum number of bytes of a body that is edited: a list of 1,000 batches has about 600,000.
LONGEST: Final = 1024 * 1024

_URL: Final = re.compile(r"(https?)://(?:\[([0-9a-f:.]+)\]|([a-z0-9._-]+))(?::([0-9]{1,5}))?([/?#].*)?", re.IGNORECASE)
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_HEADER: Final = "header:"


@frozen
class UrlField:
    """A field of an answer that has a URL: a header, or a place in its JSON body, as names from the outside in."""

    header: bytes = b""
    place: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `data.results_url` (in each item of a list, if there is one) or `header:x-goog-upload-url`."""
        if text.startswith(_HEADER):
            return cls(header=HEADER_NAME.read(text.removeprefix(_HEADER)).lower().encode("ascii"))
        if not re.fullmatch(r"[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*", text):
            raise InvalidValue("write a place in JSON like data.results_url, or a header like header:x-upload-url")
        return cls(place=tuple(text.split(".")))

    def __str__(self) -> str:
        return self.header.decode("ascii") or ".".join(self.place)


@define
class WholeResponse:
    """A response whose body was received before it is relayed, as `UpstreamResponse`."""

    status: int
    headers: HeaderList
    _body: bytes
    ready: bool = True
    ended: bool = False

    async def receive(self) -> bytes:
        """Return the body, and after that nothing."""
        body, self._body = self._body, b""
        self.ended = True
        return body

    def close(self) -> None:
        """Do nothing: the connection was released before."""


class Rewriting:
    """The compiled `rewrite_urls` of a provider; without `public_url`, its endpoints are refused."""

    def __init__(
        self, rules: Mapping[str, Sequence[UrlField]], name: str, origin: Origin, public_url: str | None
    ) -> None:
        self._endpoints = Endpoints(rules)
        self._rules = [(Endpoints([pattern]), fields) for pattern, fields in rules.items()]
        self._origin = (origin.scheme, origin.host.lower(), origin.port)
        self._public_url = public_url
        self._prefix = f"{public_url}/{name}"

    def __contains__(self, path: bytes) -> bool:
        return path in self._endpoints

    def _fields(self, path: bytes) -> Sequence[UrlField]:
        if path not in self._endpoints:
            return ()
        return next(fields for endpoints, fields in self._rules if path in endpoints)

    def refusal(self, path: bytes) -> ProxyError | None:
        if self._public_url is not None or not (fields := self._fields(path)):
            return None
        return EndpointNotAllowed(
            "This endpoint is not available, because its answers contain a URL of the provider"
            f" ({', '.join(map(str, fields))}), to which SDKs would send the token of this proxy. Ask the operator to"
            " set PUBLIC_URL, the address of this proxy"
        )

    def edits_body(self, path: bytes) -> bool:
        """Whether answers at this path have such fields in their body, which must not be compressed then."""
        return any(field.place for field in self._fields(path))

    def begins_uploads(self, path: bytes) -> bool:
        """Whether requests at this path may have no token but that in the URL of an upload session."""
        return any(field.header for field in self._fields(path))

    async def edit(
        self, response: UpstreamResponse, path: bytes, in_header: Callable[[str], str]
    ) -> tuple[UpstreamResponse | WholeResponse, bool]:
        """Replace the URLs in a response; returns what to relay, and whether it differs.

        `in_header` completes a replaced URL of a header.

        Raises:
            UpstreamUnreachable: the body may have URLs and cannot be edited.
            UpstreamFailure: the body is not complete.
        """
        fields = self._fields(path)
        names = {field.header for field in fields if field.header}
        headers, is_edited = list(response.headers), False
        for index, (name, value) in enumerate(headers):
            text = value.decode("latin-1")
            if name.lower() in names and (url := self._url(text)) != text:
                headers[index] = (name, in_header(url).encode("latin-1"))
                is_edited = True
        places = [field.place for field in fields if field.place]
        if not places or not 200 <= response.status < 300:
            response.headers = headers
            return response, is_edited
        body = edited = await _whole(response)
        if body:
            try:
                for place in places:
                    edited = self._edited(edited, place)
            except MALFORMED:
                raise UpstreamUnreachable(
                    "The provider's answer is not JSON, so its URLs cannot be replaced; it was not relayed."
                ) from None
        if edited != body:
            is_edited = True
            headers = [field for field in headers if field[0].lower() != b"content-length"]
            headers.append((b"content-length", b"%d" % len(edited)))
        return WholeResponse(response.status, headers, edited), is_edited

    def _edited(self, text: bytes, place: tuple[str, ...]) -> bytes:
        """Replace the URLs in a place of a JSON text; all other values stay as they are written."""
        if text.lstrip().startswith(b"["):
            items = [bytes(item) for item in msgspec.json.decode(text, type=list[msgspec.Raw])]
            edited = [item if item.startswith(b"[") else self._edited(item, place) for item in items]
            return text if edited == items else b"[" + b",".join(edited) + b"]"
        if not place:
            value = msgspec.json.decode(text)
            url = self._url(value) if isinstance(value, str) else value
            return text if url == value else msgspec.json.encode(url)
        if not text.lstrip().startswith(b"{"):
            msgspec.json.decode(text)
            return text
        members = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
        inner = bytes(members.get(place[0], b"null"))
        replaced = self._edited(inner, place[1:])
        if replaced == inner:
            return text
        members[place[0]] = msgspec.Raw(replaced)
        return msgspec.json.encode(members)

    def _url(self, text: str) -> str:
        """The URL of this proxy for one of the provider's; others are returned as they are."""
        match = _URL.fullmatch(text)
        if match is None:
            return text
        scheme, host = match[1].lower(), (match[2] or match[3]).lower()
        if (scheme, host, int(match[4] or _DEFAULT_PORTS[scheme])) != self._origin:
            return text
        return self._prefix + (match[5] or "")


async def _whole(response: UpstreamResponse) -> bytes:
    if content_of(response.headers)[1]:
        raise UpstreamUnreachable(
            "The provider's answer is compressed, so its URLs cannot be replaced; it was not relayed."
        )
    body = bytearray()
    while data := await response.receive():
        body += data
        if len(body) > LONGEST:
            raise UpstreamUnreachable(
                f"The provider's answer is longer than {LONGEST} bytes, so its URLs cannot be replaced; it was not"
                " relayed. Ask for fewer items"
            )
    response.close()
    return bytes(body)
