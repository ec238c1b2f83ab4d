"""Forwarded and stripped headers, in each direction.

All headers are forwarded byte for byte and in order, except:

- Hop-by-hop fields (RFC 9110 §7.6.1), and every field that `Connection` names. They are stripped before the proxy adds
  its own fields, so that a peer cannot name one of these.
- Fields of one connection only: `Host`, `Content-Length` and `Expect` of a request (the upstream connection has its own
  framing, and the server answers 100-continue itself), `Server`, `Alt-Svc` and `Set-Cookie` of a response.
- Credentials: the client's token in all its fields, and cookies, which belong to the proxy's own origin.
- The provider account behind the key: organization, project, workspace and subscription headers, in both directions. A
  client must not select another organization with the proxy's key, nor see whose key it is.
- The client's address, location and identity (`Forwarded`, `X-Forwarded-*`, `X-Real-IP`, `Via`, `X-Auth-Request-*` and
  similar fields of a request): the provider must not see who calls the proxy.
- Another method or URL than the one that was checked (`X-HTTP-Method-Override`, `X-Original-URL` and similar fields of
  a request): frameworks at the provider obey them.
- Instructions to a reverse proxy in front of this one (`X-Accel-*`, `X-Sendfile` and similar fields of a response): a
  provider could make it send another path or file. The proxy itself sends `X-Accel-Buffering: no` for streams.
- What a browser applies to the whole origin of a response (`Strict-Transport-Security`, `Clear-Site-Data` and similar
  fields): the origin is the proxy's. Fields for one response, such as `Content-Security-Policy`, are forwarded.
- Digests and `ETag` of a response that was edited.
- The provider's rate limits in a response, if a limit per minute of this proxy judged the request: ours replace them.

Some servers read `_` in a name as `-` (from RFC 3875 §4.1.18). So a name with `_` is stripped if it would then become
one of these, or one that the proxy checks, reads or sets itself.

Of `Accept-Encoding`, the codings that the usage meter can read are forwarded (`codings.py`).

Names are lower-case bytes, as in ASGI. Names from upstream are converted to lower case; values are unchanged.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING

from llm_proxy.errors import BadRequest, TokenInvalid, UpstreamUnreachable
from llm_proxy.gateway.http.codings import readable_offer

if TYPE_CHECKING:
    from llm_proxy.ledger.limits import LimitState

Headers = Sequence[tuple[bytes, bytes]]
HeaderList = list[tuple[bytes, bytes]]

HOP_BY_HOP = frozenset(
    b"""
    connection http2-settings keep-alive proxy-authenticate proxy-authentication-info proxy-authorization
    proxy-connection te trailer transfer-encoding upgrade
    """.split()
)

ACCOUNT = frozenset(
    b"""
    anthropic-organization-id anthropic-workspace-id ocp-apim-subscription-key openai-organization openai-project
    x-goog-user-project
    """.split()
)

ONE_LEG = frozenset({b"alt-svc", b"server", b"set-cookie", b"set-cookie2"})

#: The fields that may contain the client's token.
CREDENTIALS = frozenset({b"authorization", b"x-api-key", b"api-key", b"x-goog-api-key"})

#: The client's address, location and identity, from reverse proxies, load balancers and content networks.
CLIENT_ADDRESS = frozenset(
    b"""
    ali-cdn-real-ip cdn-src-ip cf-access-authenticated-user-email cf-access-jwt-assertion cf-ew-via cf-metro-code
    cf-postal-code cf-pseudo-ipv4 cf-ray cf-timezone cf-visitor cf-worker client-cert client-cert-chain client-ip
    do-connecting-ip fastly-client-ip fly-client-ip fly-region forwarded forwarded-for http-client-ip http-via
    proxy-client-ip true-client-ip via wl-proxy-client-ip x-akamai-edgescape x-client-geo-location x-client-ip
    x-client-port x-cluster-client-ip x-coming-from x-nf-client-connection-ip x-original-forwarded-for
    x-originating-ip x-proxy-authorization x-proxyuser-ip x-true-client-ip x-vercel-forwarded-for
    """.split()
)

#: The same, by prefix. Authenticating proxies (OAuth2 Proxy, Authelia, Tailscale, those of Google, AWS and Azure) add
#: names, certificates and tokens. `x-envoy-` fields also control where and how often Envoy sends a request.
CLIENT_ADDRESS_PREFIXES = tuple(
    b"""
    cf-connecting-ip cf-ip cf-region cloudfront-viewer- http-forwarded http-x-forwarded remote- ssl-client-
    tailscale-user- x-amzn-mtls- x-amzn-oidc- x-appengine- x-auth-request- x-azure- x-client-cert x-envoy-
    x-forwarded x-goog-authenticated-user- x-goog-iap- x-ms-client-principal x-ms-token- x-real- x-remote-
    x-ssl-client- x-vercel-ip-
    """.split()
)

#: Fields that frameworks (Rails, Symfony, Express, Django), IIS and nginx ingresses use as method, path or host.
OVERRIDES = frozenset(
    b"""
    x-backend-host x-http-host-override x-http-method x-http-method-override x-http-path-override x-host
    x-method-override x-original-host x-original-method x-original-uri x-original-url x-override-url x-rewrite-url
    """.split()
)

#: Fields that the upstream connection sets itself, and cookies of the proxy's own origin.
REQUEST_ONLY = frozenset({b"content-length", b"cookie", b"cookie2", b"expect", b"host"})

_STRIPPED_UPSTREAM = HOP_BY_HOP | ACCOUNT | ONE_LEG | CREDENTIALS | CLIENT_ADDRESS | OVERRIDES | REQUEST_ONLY

#: Fields that the proxy reads in a request (`parameters.py`, `codings.py`) and does not strip.
READ = frozenset({b"accept-encoding", b"content-encoding", b"content-type"})

#: Instructions to nginx (ngx_http_proxy_module), Apache (mod_xsendfile), lighttpd, LiteSpeed, Perlbal, Envoy (router,
#: health checks) and content networks (RFC 9213, Surrogate-Control); also `x-accel-*` and `x-litespeed-*`.
INSTRUCTIONS = frozenset(
    b"""
    cdn-cache-control cloudflare-cdn-cache-control edge-control surrogate-control x-envoy-decorator-operation
    x-envoy-degraded x-envoy-immediate-health-check-fail x-envoy-overloaded x-envoy-ratelimited
    x-envoy-upstream-canary x-envoy-upstream-healthchecked-cluster x-lighttpd-send-file x-lighttpd-send-tempfile
    x-reproxy-file x-reproxy-url x-sendfile x-sendfile-temporary x-sendfile2
    """.split()
)

#: What browsers store for the origin, which is the proxy's: transport, storage, reports, workers, hints, sign-in.
WHOLE_ORIGIN = frozenset(
    b"""
    accept-ch clear-site-data critical-ch expect-ct nel public-key-pins public-key-pins-report-only report-to
    reporting-endpoints service-worker-allowed set-login strict-transport-security use-as-dictionary
    """.split()
)

#: Digests and the version of the provider's bytes (RFC 9530, RFC 3230, RFC 1864, RFC 9110 §8.8.3).
DIGESTS = frozenset({b"content-digest", b"repr-digest", b"digest", b"content-md5", b"etag"})

_STRIPPED_DOWNSTREAM = HOP_BY_HOP | ACCOUNT | ONE_LEG | INSTRUCTIONS | WHOLE_ORIGIN

#: Fields that the proxy reads or sets in a response and does not strip.
_SET = frozenset(
    b"""
    access-control-allow-origin access-control-expose-headers content-encoding content-length content-type
    x-request-id
    """.split()
)


EVENT_STREAM = b"text/event-stream"


class Forwarded(dict[bytes, bool]):
    """Whether a header is forwarded, by its name. A cache: checking a name costs ten times as much."""

    def __init__(
        self,
        stripped: frozenset[bytes],
        prefixes: tuple[bytes, ...] = (),
        handled: frozenset[bytes] = frozenset(),
    ) -> None:
        """Strip these names and prefixes, and names that become one of them or of `handled` if `_` is read as `-`."""
        self._stripped = stripped
        self._prefixes = prefixes
        self._read_as_dash = stripped | handled

    def __missing__(self, name: bytes) -> bool:
        forwarded = name not in self._stripped and not name.startswith(self._prefixes)
        if forwarded and b"_" in name:
            dashed = name.replace(b"_", b"-")
            forwarded = dashed not in self._read_as_dash and not dashed.startswith(self._prefixes)
        if len(self) < _KNOWN_NAMES and len(name) <= _KNOWN_LENGTH:
            self[name] = forwarded
        return forwarded


#: Maximum number and length of the names in the cache: clients can invent any number of them.
_KNOWN_NAMES = 1024
_KNOWN_LENGTH = 64

_forwarded_upstream = Forwarded(_STRIPPED_UPSTREAM, CLIENT_ADDRESS_PREFIXES, READ)
_forwarded_downstream = Forwarded(_STRIPPED_DOWNSTREAM, (b"x-accel-", b"x-litespeed-", b"x-llm-proxy-"), _SET)

_CONNECTION_OPTIONS = frozenset({b"close", b"keep-alive", b"upgrade", b""})

#: Not allowed in a field value (RFC 9110 §5.5): it could end the field or the message.
_UNSAFE_VALUE = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")


def token_of(headers: Headers, in_query: Sequence[bytes] = ()) -> bytes | None:
    """Return the client's token, or None if there is none.

    It is in `Authorization: Bearer`, `X-Api-Key`, `Api-Key`, `X-Goog-Api-Key`, or one of `in_query`; SDKs send it in
    several of them. Raises `TokenInvalid` if these differ.
    """
    candidates = list(filter(None, in_query))
    for name, value in headers:
        if name not in CREDENTIALS:
            continue
        found = value.strip(b" \t")
        if name == b"authorization":
            scheme, _, found = found.partition(b" ")
            if scheme.lower() != b"bearer":
                continue
            found = found.lstrip(b" \t")
        if found:
            candidates.append(found)
    if len(candidates) > 1 and len(set(candidates)) > 1:
        raise TokenInvalid("The request carries two different API tokens. Send one of them only.")
    return candidates[0] if candidates else None


def request_headers(
    headers: Headers,
    credential: Headers,
    judged: frozenset[bytes] = frozenset(),
    static: Mapping[bytes, bytes] = MappingProxyType({}),
) -> HeaderList:
    """Convert a client's headers to those for the provider, with the provider's `credential` at the end.

    The upstream connection adds `Host` and the framing. `judged` has the names of headers that the provider's entry
    checks, and `static` the headers that it sets; they replace those of the client. Raises `BadRequest` if a value
    contains a control character: HTTP/2 can carry one, and it would split the HTTP/1.1 request.
    """
    kept: HeaderList = []
    offers: list[bytes] = []
    connection: list[bytes] = []
    for field in headers:
        name = field[0]
        if _forwarded_upstream[name]:
            kept.append(field)
            if name == b"accept-encoding":
                offers.append(field[1])
        elif name == b"connection":
            connection.append(field[1])
    if judged:
        kept = [field for field in kept if b"_" not in field[0] or field[0].replace(b"_", b"-") not in judged]
    if offers and (offer := readable_offer(b", ".join(offers))) is not None:
        kept = [field for field in kept if field[0] != b"accept-encoding"]
        kept.append((b"accept-encoding", offer))
    if connection:
        kept = _without_named(kept, connection)
    if _UNSAFE_VALUE.search(b"".join([value for _, value in kept])):
        raise BadRequest
    if static:
        kept = [field for field in kept if field[0].replace(b"_", b"-") not in static]
        kept += static.items()
    kept += credential
    return kept


def response_headers(
    headers: Headers, request_id: bytes, overhead_ms: float, edits: Sequence[bytes] = ()
) -> HeaderList:
    """Convert a provider's response headers, names in any case, to those for the client; the proxy's own are last.

    `Content-Length` is kept, because the body is forwarded byte for byte, or was redone. `edits` are the names of the
    edits of the response: what identifies the provider's bytes is stripped then. Raises `UpstreamUnreachable` if a
    value contains a control character.
    """
    kept: HeaderList = []
    connection: list[bytes] = []
    for raw_name, value in headers:
        name = raw_name.lower()
        if _forwarded_downstream[name]:
            kept.append((name, value))
        elif name == b"connection":
            connection.append(value)
    if connection:
        kept = _without_named(kept, connection)
    if _UNSAFE_VALUE.search(b"".join([value for _, value in kept])):
        raise UpstreamUnreachable("The provider answered with a header that contains a control character.")
    names = dict(kept)
    if media_type(names.get(b"content-type", b"")) == EVENT_STREAM:
        kept.append((b"x-accel-buffering", b"no"))
    if b"x-request-id" not in names:
        kept.append((b"x-request-id", request_id))
    kept.append((b"x-llm-proxy-request-id", request_id))
    kept.append((b"x-llm-proxy-overhead-ms", b"%.2f" % overhead_ms))
    if edits:
        kept = [field for field in kept if field[0] not in DIGESTS]
        kept.append((b"x-llm-proxy-edited", b", ".join(edits)))
    return kept


#: What the rate limits in a response are called, by metric: https://platform.openai.com/docs/guides/rate-limits and
#: https://docs.claude.com/en/api/rate-limits.
_OPENAI_LIMITS = {"requests": b"requests", "tokens": b"tokens"}
_ANTHROPIC_LIMITS = _OPENAI_LIMITS | {"input_tokens": b"input-tokens", "output_tokens": b"output-tokens"}


def with_rate_limits(fields: HeaderList, states: Iterable[LimitState], now: datetime, *, anthropic: bool) -> HeaderList:
    """Replace rate limits in a response by ours per minute; of several of one metric, the one with the least left."""
    names = _ANTHROPIC_LIMITS if anthropic else _OPENAI_LIMITS
    least: dict[bytes, tuple[int, LimitState]] = {}
    for state in states:
        limit = state.limit
        name = names.get(limit.metric)
        if name is None or limit.period != "minute" or limit.policy == "warn":
            continue
        left = max(0, limit.amount - state.used - state.reserved)
        if name not in least or left < least[name][0]:
            least[name] = (left, state)
    ours: dict[bytes, bytes] = {}
    for name, (left, state) in least.items():
        ends_at = state.ends_at or now
        seconds = max(0, math.ceil((ends_at - now).total_seconds()))
        if anthropic:
            reset = ends_at.strftime("%Y-%m-%dT%H:%M:%SZ").encode()
            values = {b"limit": b"%d" % state.limit.amount, b"remaining": b"%d" % left, b"reset": reset}
            ours |= {b"anthropic-ratelimit-%b-%b" % (name, what): value for what, value in values.items()}
        else:
            values = {b"limit": b"%d" % state.limit.amount, b"remaining": b"%d" % left, b"reset": b"%ds" % seconds}
            ours |= {b"x-ratelimit-%b-%b" % (what, name): value for what, value in values.items()}
    if not ours:
        return fields
    return [field for field in fields if field[0].replace(b"_", b"-") not in ours] + list(ours.items())


@lru_cache(maxsize=64)  # providers have few
def media_type(content_type: bytes) -> bytes:
    """The media type of a `Content-Type` value: lower-case, without parameters (RFC 9110 §8.3.1)."""
    return content_type.partition(b";")[0].strip(b" \t").lower()


def content_of(headers: Headers) -> tuple[bytes, bytes]:
    """The media type and the content codings of a response, both lower-case; empty if there is none."""
    kind, coding = b"", b""
    for name, value in headers:
        if len(name) == 12 and name.lower() == b"content-type":
            kind = media_type(value)
        elif len(name) == 16 and name.lower() == b"content-encoding":
            coding = coding + b"," + value if coding else value
    coding = coding.strip(b" \t").lower()
    return kind, b"" if coding == b"identity" else coding


def _without_named(kept: HeaderList, connection: list[bytes]) -> HeaderList:
    """Remove the fields that the values of `Connection` name; `close` and `keep-alive` are options, not fields."""
    if connection == [b"keep-alive"]:
        return kept
    names = {name.strip(b" \t").lower().replace(b"_", b"-") for value in connection for name in value.split(b",")}
    names -= _CONNECTION_OPTIONS
    return [field for field in kept if field[0].replace(b"_", b"-") not in names] if names else kept
