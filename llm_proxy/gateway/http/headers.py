"""Which headers cross the proxy, in each direction.

Everything crosses byte for byte and in order, except:

- Hop-by-hop fields (RFC 9110 §7.6.1), and every field that `Connection` names. They go first, before anything of ours
  is added, so that a peer cannot have our own fields removed by naming them.
- What belongs to one leg only: `Host`, `Content-Length` and `Expect` of a request (the upstream connection frames its
  own message, and 100-continue is settled with the client), `Server`, `Alt-Svc` and `Set-Cookie` of a response.
- Credentials: the client's token in whatever field it came, and cookies, which belong to the proxy's own origin.
- The provider account behind the key: organisation, project, workspace and subscription headers, both ways. A client
  must not pick another organisation with our key, nor learn whose key it is.
- The client's address, place and identity, and the way that it came (`Forwarded`, `X-Forwarded-*`, `X-Real-IP`, `Via`,
  `X-Auth-Request-*` and the like of a request): who calls the proxy is no business of the provider.
- Another method or URL than the one that was judged (`X-HTTP-Method-Override`, `X-Original-URL` and the like of a
  request): frameworks behind the provider's front obey them.
- Orders to a reverse proxy in front of this one (`X-Accel-*`, `X-Sendfile` and the like of a response): a provider
  could have it hand out another path, or a file. Ours to give is `X-Accel-Buffering: no` for streams.
- What a browser applies to the whole origin of a response (`Strict-Transport-Security`, `Clear-Site-Data` and the
  like): the origin is the proxy's. What acts on one response alone, as `Content-Security-Policy` does, is forwarded.

Some readers take `_` in a name for `-` (RFC 3875 §4.1.18 and what follows it). So a name with `_` is forwarded unless
it would then become one of these, one that the proxy judges or reads, or one that it sets itself.

Of `Accept-Encoding` the codings go upstream that the usage meter can read (`codings.py`).

Names are lower-case bytes, as in ASGI; a name from upstream is made lower-case, its value stays as it is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from llm_proxy.errors import BadRequest, TokenInvalid, UpstreamUnreachable
from llm_proxy.gateway.http.codings import readable_offer

Headers = Sequence[tuple[bytes, bytes]]
HeaderList = list[tuple[bytes, bytes]]

HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"http2-settings",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authentication-info",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)

ACCOUNT = frozenset(
    {
        b"anthropic-organization-id",
        b"anthropic-workspace-id",
        b"ocp-apim-subscription-key",
        b"openai-organization",
        b"openai-project",
        b"x-goog-user-project",
    }
)

ONE_LEG = frozenset({b"alt-svc", b"server", b"set-cookie", b"set-cookie2"})

#: The fields that a client may put its token in.
CREDENTIALS = frozenset({b"authorization", b"x-api-key", b"api-key", b"x-goog-api-key"})

#: What reverse proxies, load balancers and content networks tell of the client: its address, its place, its identity.
CLIENT_ADDRESS = frozenset(
    {
        b"ali-cdn-real-ip",
        b"cdn-src-ip",
        b"cf-access-authenticated-user-email",
        b"cf-access-jwt-assertion",
        b"cf-ew-via",
        b"cf-metro-code",
        b"cf-postal-code",
        b"cf-pseudo-ipv4",
        b"cf-ray",
        b"cf-timezone",
        b"cf-visitor",
        b"cf-worker",
        b"client-cert",
        b"client-cert-chain",
        b"client-ip",
        b"do-connecting-ip",
        b"fastly-client-ip",
        b"fly-client-ip",
        b"fly-region",
        b"forwarded",
        b"forwarded-for",
        b"http-client-ip",
        b"http-via",
        b"proxy-client-ip",
        b"true-client-ip",
        b"via",
        b"wl-proxy-client-ip",
        b"x-akamai-edgescape",
        b"x-client-geo-location",
        b"x-client-ip",
        b"x-client-port",
        b"x-cluster-client-ip",
        b"x-coming-from",
        b"x-nf-client-connection-ip",
        b"x-original-forwarded-for",
        b"x-originating-ip",
        b"x-proxy-authorization",
        b"x-proxyuser-ip",
        b"x-true-client-ip",
        b"x-vercel-forwarded-for",
    }
)

#: The same, by their beginning. Proxies that sign users in (OAuth2 Proxy, Authelia, Tailscale, those of Google, AWS and
#: Azure) pass on names, certificates and tokens. `x-envoy-` is also how Envoy is told where to and how often to send a
#: request.
CLIENT_ADDRESS_PREFIXES = (
    b"cf-connecting-ip",
    b"cf-ip",
    b"cf-region",
    b"cloudfront-viewer-",
    b"http-forwarded",
    b"http-x-forwarded",
    b"remote-",
    b"ssl-client-",
    b"tailscale-user-",
    b"x-amzn-mtls-",
    b"x-amzn-oidc-",
    b"x-appengine-",
    b"x-auth-request-",
    b"x-azure-",
    b"x-client-cert",
    b"x-envoy-",
    b"x-forwarded",
    b"x-goog-authenticated-user-",
    b"x-goog-iap-",
    b"x-ms-client-principal",
    b"x-ms-token-",
    b"x-real-",
    b"x-remote-",
    b"x-ssl-client-",
    b"x-vercel-ip-",
)

#: What frameworks (Rails, Symfony, Express, Django), IIS and nginx ingresses take for the method, path or host.
OVERRIDES = frozenset(
    {
        b"x-backend-host",
        b"x-http-host-override",
        b"x-http-method",
        b"x-http-method-override",
        b"x-http-path-override",
        b"x-host",
        b"x-method-override",
        b"x-original-host",
        b"x-original-method",
        b"x-original-uri",
        b"x-original-url",
        b"x-override-url",
        b"x-rewrite-url",
    }
)

#: What the upstream connection makes anew, and what clients keep for the proxy's own origin.
REQUEST_ONLY = frozenset({b"content-length", b"cookie", b"cookie2", b"expect", b"host"})

_NOT_UPSTREAM = HOP_BY_HOP | ACCOUNT | ONE_LEG | CREDENTIALS | CLIENT_ADDRESS | OVERRIDES | REQUEST_ONLY

#: What the proxy reads in a request (`parameters.py`, `codings.py`), beside what it strips.
_READ = frozenset({b"accept-encoding", b"content-encoding", b"content-type"})

#: What nginx (ngx_http_proxy_module), Apache (mod_xsendfile), lighttpd, LiteSpeed, Perlbal, Envoy (its router and its
#: health checks) and content networks (RFC 9213, Surrogate-Control) obey; `x-accel-*` and `x-litespeed-*` too.
ORDERS = frozenset(
    {
        b"cdn-cache-control",
        b"cloudflare-cdn-cache-control",
        b"edge-control",
        b"surrogate-control",
        b"x-envoy-decorator-operation",
        b"x-envoy-degraded",
        b"x-envoy-immediate-health-check-fail",
        b"x-envoy-overloaded",
        b"x-envoy-ratelimited",
        b"x-envoy-upstream-canary",
        b"x-envoy-upstream-healthchecked-cluster",
        b"x-lighttpd-send-file",
        b"x-lighttpd-send-tempfile",
        b"x-reproxy-file",
        b"x-reproxy-url",
        b"x-sendfile",
        b"x-sendfile-temporary",
        b"x-sendfile2",
    }
)

#: What browsers keep for the origin, which is the proxy's: transport, storage, reports, workers, hints, sign-in.
WHOLE_ORIGIN = frozenset(
    {
        b"accept-ch",
        b"clear-site-data",
        b"critical-ch",
        b"expect-ct",
        b"nel",
        b"public-key-pins",
        b"public-key-pins-report-only",
        b"report-to",
        b"reporting-endpoints",
        b"service-worker-allowed",
        b"set-login",
        b"strict-transport-security",
        b"use-as-dictionary",
    }
)

_NOT_DOWNSTREAM = HOP_BY_HOP | ACCOUNT | ONE_LEG | ORDERS | WHOLE_ORIGIN

#: What the proxy reads in a response or sets itself, beside what it strips.
_SET = frozenset(
    {
        b"access-control-allow-origin",
        b"access-control-expose-headers",
        b"content-encoding",
        b"content-length",
        b"content-type",
        b"x-request-id",
    }
)


class _Crossing(dict[bytes, bool]):
    """Whether a header is forwarded, by its name; names are looked up far more often than there are new ones."""

    def __init__(self, stripped: frozenset[bytes], prefixes: tuple[bytes, ...], handled: frozenset[bytes]) -> None:
        """Strip these names and prefixes, and what becomes one of them or of `handled` if `_` is read as `-`."""
        self._stripped = stripped
        self._prefixes = prefixes
        self._read_as_dash = stripped | handled

    def __missing__(self, name: bytes) -> bool:
        crosses = name not in self._stripped and not name.startswith(self._prefixes)
        if b"_" in name:
            dashed = name.replace(b"_", b"-")
            crosses = dashed not in self._read_as_dash and not dashed.startswith(self._prefixes)
        if len(self) < _KNOWN_NAMES and len(name) <= _KNOWN_LENGTH:
            self[name] = crosses
        return crosses


#: Names that are remembered at most, and how long they are at most: clients can make up as many as they like.
_KNOWN_NAMES = 1024
_KNOWN_LENGTH = 64

_goes_upstream = _Crossing(_NOT_UPSTREAM, CLIENT_ADDRESS_PREFIXES, _READ)
_goes_downstream = _Crossing(_NOT_DOWNSTREAM, (b"x-accel-", b"x-litespeed-", b"x-llm-proxy-"), _SET)

_CONNECTION_OPTIONS = frozenset({b"close", b"keep-alive", b"upgrade", b""})

#: What a field value must not hold (RFC 9110 §5.5): it would end the field or the message.
_UNSAFE_VALUE = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")


def token_of(headers: Headers) -> bytes | None:
    """Find the client's token; None where there is none.

    It may stand in `Authorization: Bearer`, `X-Api-Key`, `Api-Key` or `X-Goog-Api-Key`, and in several of them if it
    is the same one: SDKs do that. Raises `TokenInvalid` for different ones, so that nobody has to guess which counts.
    """
    token: bytes | None = None
    for name, value in headers:
        if name not in CREDENTIALS:
            continue
        found = value.strip(b" \t")
        if name == b"authorization":
            scheme, _, found = found.partition(b" ")
            if scheme.lower() != b"bearer":
                continue
            found = found.lstrip(b" \t")
        if not found:
            continue
        if token is not None and token != found:
            raise TokenInvalid("The request carries two different API tokens. Send one of them only.")
        token = found
    return token


def request_headers(
    headers: Headers, credential: tuple[bytes, bytes], judged: frozenset[bytes] = frozenset()
) -> HeaderList:
    """Turn a client's headers into those for the provider, with the provider's `credential` as the last one.

    `Host` and the framing are left to the upstream connection. Raises `BadRequest` where a value holds a control
    character: HTTP/2 can carry one, and it would split the HTTP/1.1 request that is written from it.

    Args:
        headers: as received; names in lower case.
        credential: the header that carries the provider's key.
        judged: names of headers that the provider's entry judges.
    """
    kept = [field for field in headers if _goes_upstream[field[0]]]
    if judged:
        kept = [field for field in kept if b"_" not in field[0] or field[0].replace(b"_", b"-") not in judged]
    offers = [value for name, value in kept if name == b"accept-encoding"]
    if offers and (offer := readable_offer(b", ".join(offers))) is not None:
        kept = [field for field in kept if field[0] != b"accept-encoding"]
        kept.append((b"accept-encoding", offer))
    connection = [value for name, value in headers if name == b"connection"]
    if connection:
        kept = _without_named(kept, connection)
    if _UNSAFE_VALUE.search(b"".join([value for _, value in kept])):
        raise BadRequest("A header of the request holds a control character.")
    kept.append(credential)
    return kept


def response_headers(headers: Headers, request_id: bytes, overhead_ms: float) -> HeaderList:
    """Turn a provider's response headers into those for the client, with the proxy's own added at the end.

    `Content-Length` stays, because the body passes byte for byte. Raises `UpstreamUnreachable` where a value holds a
    control character.

    Args:
        headers: as received; names in any case.
        request_id: the id under which the request stands in the ledger.
        overhead_ms: milliseconds of the proxy's own doing so far.
    """
    kept: HeaderList = []
    connection: list[bytes] = []
    for raw_name, value in headers:
        name = raw_name.lower()
        if _goes_downstream[name]:
            kept.append((name, value))
        elif name == b"connection":
            connection.append(value)
    if connection:
        kept = _without_named(kept, connection)
    if _UNSAFE_VALUE.search(b"".join([value for _, value in kept])):
        raise UpstreamUnreachable("The provider answered with a header that holds a control character.")
    names = dict(kept)
    if b"content-type" in names and is_event_stream(names[b"content-type"]):
        kept.append((b"x-accel-buffering", b"no"))
    if b"x-request-id" not in names:
        kept.append((b"x-request-id", request_id))
    kept.append((b"x-llm-proxy-request-id", request_id))
    kept.append((b"x-llm-proxy-overhead-ms", b"%.2f" % overhead_ms))
    return kept


@lru_cache(maxsize=256)
def is_event_stream(content_type: bytes) -> bool:
    """Whether a `Content-Type` value says that the body is a stream of server-sent events."""
    return media_type(content_type) == b"text/event-stream"


def media_type(content_type: bytes) -> bytes:
    """The media type of a `Content-Type` value: lower-case, without parameters (RFC 9110 §8.3.1)."""
    return content_type.partition(b";")[0].strip(b" \t").lower()


def _without_named(kept: HeaderList, connection: list[bytes]) -> HeaderList:
    """Remove what the values of `Connection` name; `close` and `keep-alive` are options, and no field has the name."""
    if connection == [b"keep-alive"]:
        return kept
    names = {name.strip(b" \t").lower().replace(b"_", b"-") for value in connection for name in value.split(b",")}
    names -= _CONNECTION_OPTIONS
    return [field for field in kept if field[0].replace(b"_", b"-") not in names] if names else kept
