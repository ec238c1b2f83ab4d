from __future__ import annotations

from collections.abc import Mapping

import pytest

from llm_proxy.gateway.upstream.connector import Origin
from llm_proxy.gateway.upstream.outbound_proxy import OutboundProxy, outbound_proxy

API = Origin("https", "api.example", 443)
PLAIN = Origin("http", "api.example", 80)
PROXY = "http://proxy.example:3128"


def route(origin: Origin, environ: Mapping[str, str]) -> str:
    proxy = outbound_proxy(origin, environ)
    return "direct" if proxy is None else str(proxy)


@pytest.mark.parametrize(
    ("origin", "environ", "expected"),
    [
        (API, {}, "direct"),
        (API, {"HTTPS_PROXY": PROXY}, PROXY),
        (API, {"https_proxy": PROXY}, PROXY),
        (API, {"HTTP_PROXY": PROXY}, "direct"),
        (PLAIN, {"HTTP_PROXY": PROXY}, PROXY),
        (PLAIN, {"HTTPS_PROXY": PROXY}, "direct"),
        (PLAIN, {"ALL_PROXY": PROXY}, PROXY),
        (API, {"all_proxy": PROXY}, PROXY),
        (API, {"HTTPS_PROXY": "", "ALL_PROXY": PROXY}, PROXY),
        (API, {"HTTPS_PROXY": "http://upper:1", "https_proxy": "http://lower:1"}, "http://lower:1"),
        (API, {"HTTPS_PROXY": "http://a:1", "ALL_PROXY": "http://b:1"}, "http://a:1"),
        (API, {"HTTPS_PROXY": "proxy.example:3128"}, PROXY),
        (API, {"HTTPS_PROXY": "http://proxy.example"}, "http://proxy.example:80"),
        (API, {"HTTPS_PROXY": "https://proxy.example/"}, "https://proxy.example:443"),
        (API, {"HTTPS_PROXY": "http://[::1]:3128"}, "http://[::1]:3128"),
    ],
)
def test_the_environment_selects_the_proxy(origin: Origin, environ: Mapping[str, str], expected: str) -> None:
    assert route(origin, environ) == expected


@pytest.mark.parametrize(
    ("host", "exceptions", "direct"),
    [
        ("api.example", "", False),
        ("api.example", "*", True),
        ("api.example", "api.example", True),
        ("API.example", "api.EXAMPLE", True),
        ("api.example", "example", True),
        ("api.example", ".example", True),
        ("api.example", "*.example", True),
        ("api.example", "other.example, api.example", True),
        ("api.example", "other.example api.example", True),
        ("api.example", "i.example", False),
        ("api.example", "api.example.org", False),
        ("api.example", "api.example:443", True),
        ("api.example", "api.example:8443", False),
        ("api.example", ",", False),
        ("10.1.2.3", "10.0.0.0/8", True),
        ("10.1.2.3", "10.1.2.3", True),
        ("10.1.2.3", "10.1.2.3:443", True),
        ("10.1.2.3", "10.1.2.3:80", False),
        ("11.1.2.3", "10.0.0.0/8", False),
        ("fd00::1", "fd00::/8", True),
        ("fd00::1", "[fd00::1]", True),
        ("fd00::1", "[fd00::1]:443", True),
        ("localhost", "", True),
        ("127.8.9.1", "", True),
        ("::1", "", True),
        ("a.localhost", "", True),
    ],
)
def test_no_proxy_lists_exceptions(host: str, exceptions: str, direct: bool) -> None:
    environ = {"HTTPS_PROXY": PROXY, "NO_PROXY": exceptions}
    assert (route(Origin("https", host, 443), environ) == "direct") is direct


def test_credentials_are_percent_decoded_and_never_shown() -> None:
    proxy = outbound_proxy(API, {"HTTPS_PROXY": "http://us%40er:pa%3Ass@proxy.example:3128"})
    assert proxy == OutboundProxy("http", "proxy.example", 3128, (b"us@er", b"pa:ss"))
    assert "pa" not in f"{proxy} {proxy!r}"


@pytest.mark.parametrize(
    "url",
    ["socks5://secret@proxy:1", "ftp://proxy", "http://", "http://proxy:port", "http://proxy/path", "http://[::1"],
)
def test_an_invalid_proxy_url_is_refused_without_showing_it(url: str) -> None:
    with pytest.raises(ValueError, match="HTTPS_PROXY") as caught:
        outbound_proxy(API, {"HTTPS_PROXY": url})
    assert "secret" not in str(caught.value)
