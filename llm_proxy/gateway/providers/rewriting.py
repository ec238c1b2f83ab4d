"""The edit `rewrite_urls`: URLs of a provider in its answers become URLs of this proxy.

SDKs send their next request, with the client's token, to such a URL, so it must lead back to the proxy. The entry of a
provider lists the fields that have one. A value is replaced only if its scheme, host and port are those of the entry's
base URL: `https://api.anthropic.com/v1/x` becomes `PUBLIC_URL/anthropic/v1/x`, which always goes to the same entry.

If an answer may have such a field in its body, the body is held until it is complete, and it must be JSON that is not
compressed. Any other answer is not relayed: a URL that is not found in it would get the token.

Google's resumable uploads begin with a request that gets the URL of an upload session in a header. SDKs send the
content to that URL without a key: its `upload_id` is secret enough. So the proxy adds a parameter to the URL with the
digest of the token that began the session, encrypted together with provider and `upload_id`. It is valid for this
upload only, and only while the token is. It is removed before a request is forwarded.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final, Self
from urllib.parse import unquote

import msgspec
from attrs import define, frozen

from llm_proxy.config.kinds import HEADER_NAME, InvalidValue
from llm_proxy.errors import EndpointNotAllowed, ProxyError, TokenInvalid, UpstreamUnreachable
from llm_proxy.gateway.http import paths
from llm_proxy.gateway.http.headers import content_of
from llm_proxy.gateway.http.json_members import MALFORMED
from llm_proxy.gateway.providers.endpoints import Endpoints
from llm_proxy.gateway.upstream.connector import DEFAULT_PORTS, Origin
from llm_proxy.secrets.encryption import SealError

if TYPE_CHECKING:
    from llm_proxy.gateway.http.headers import HeaderList
    from llm_proxy.gateway.upstream.pool import UpstreamResponse
    from llm_proxy.secrets.encryption import KeyRing

#: The name of this edit in `X-LLM-Proxy-Edited`.
EDIT: Final = b"rewrite_urls"
#: Maximum number of bytes of a body that is edited: a list of 1,000 batches has about 600,000.
LONGEST: Final = 1024 * 1024
#: The parameters of the URL of an upload session: what the proxy adds, and the provider's id.
_SESSION: Final = b"llm-proxy-session"
_UPLOAD_ID: Final = b"upload_id"

_URL: Final = re.compile(r"(https?)://(?:\[([0-9a-f:.]+)\]|([a-z0-9._-]+))(?::([0-9]{1,5}))?([/?#].*)?", re.IGNORECASE)
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
        self._name = name
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

    def _has_sessions(self, path: bytes) -> bool:
        return any(field.header for field in self._fields(path))

    def with_session(self, keyring: KeyRing, token_digest: bytes, url: str) -> str:
        """Add the parameter to a URL with an `upload_id`; others, and all if API keys are not encrypted, stay as is."""
        query = url.partition("#")[0].partition("?")[2].encode("latin-1")
        _, ids = paths.split_query(query, _UPLOAD_ID)
        if len(ids) != 1 or not keyring.key_ids:
            return url
        sealed = keyring.seal(token_digest.hex(), self._purpose(ids[0]))
        return f"{url}&{_SESSION.decode('ascii')}={paths.query_value(sealed).decode('ascii')}"

    def without_session(self, path: bytes, query: bytes) -> bytes:
        return paths.split_query(query, _SESSION)[0] if query and self._has_sessions(path) else query

    def session_digest(self, keyring: KeyRing, path: bytes, query: bytes) -> bytes | None:
        """The digest of the token that began the upload session; None if there is none. Raises `TokenInvalid`."""
        found = paths.split_query(query, _SESSION)[1] if self._has_sessions(path) else []
        if not found:
            return None
        _, ids = paths.split_query(query, _UPLOAD_ID)
        sealed = unquote(found[0].decode("latin-1"))
        # Text in the clear is accepted for API keys in the database, which nobody outside can write.
        if len(found) == len(ids) == 1 and keyring.key_ids and keyring.is_current(sealed):
            try:
                return bytes.fromhex(keyring.open(sealed, self._purpose(ids[0])))
            except (SealError, ValueError):
                pass
        raise TokenInvalid(
            "The URL of this upload was not made by this proxy, or its key was rotated. Begin the upload again."
        )

    def _purpose(self, upload_id: bytes) -> str:
        return f"upload session {self._name} {upload_id.decode('latin-1')}"

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
        if (scheme, host, int(match[4] or DEFAULT_PORTS[scheme])) != self._origin:
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
