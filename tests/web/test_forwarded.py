from __future__ import annotations

from ipaddress import ip_network

import pytest

from llm_proxy.web.forwarded import TrustedProxies

TRUSTED = TrustedProxies([ip_network("10.0.0.0/8"), ip_network("192.0.2.7"), ip_network("2001:db8::/32")])
STRANGER = "203.0.113.9"

CLIENTS: list[tuple[str, list[str], str]] = [
    # Nobody to believe.
    (STRANGER, [], STRANGER),
    (STRANGER, ["198.51.100.1"], STRANGER),
    ("192.0.2.8", ["198.51.100.1"], "192.0.2.8"),
    ("/run/proxy.sock", ["198.51.100.1"], "/run/proxy.sock"),
    ("", ["198.51.100.1"], ""),
    # One proxy, several, and a client that writes a header of its own.
    ("10.0.0.1", [STRANGER], STRANGER),
    ("10.0.0.1", [f"{STRANGER}, 10.9.9.9, 192.0.2.7"], STRANGER),
    ("10.0.0.1", [f"127.0.0.1, 198.51.100.1, {STRANGER}"], STRANGER),
    ("10.0.0.1", [f"198.51.100.1, {STRANGER}, 10.0.0.2"], STRANGER),
    # Several headers are one list, in their order.
    ("10.0.0.1", ["198.51.100.1", STRANGER], STRANGER),
    ("10.0.0.1", [STRANGER, "10.0.0.2"], STRANGER),
    # Where all are trusted, the first of them is the client.
    ("10.0.0.1", ["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
    ("10.0.0.1", [], "10.0.0.1"),
    ("10.0.0.1", ["", " , ,"], "10.0.0.1"),
    ("10.0.0.1", [f" {STRANGER} ,, "], STRANGER),
    # What is no address ends it.
    ("10.0.0.1", ["unknown"], "10.0.0.1"),
    ("10.0.0.1", [f"{STRANGER}, _hidden, 10.0.0.2"], "10.0.0.2"),
    ("10.0.0.1", [f"{STRANGER}, 10.0.0.256"], "10.0.0.1"),
    ("10.0.0.1", [f"{STRANGER}, 1\xb2.0.0.1"], "10.0.0.1"),
    ("10.0.0.1", [f"{STRANGER}, fe80::1%{'x' * 100}"], "10.0.0.1"),
    # The ways of writing one.
    ("10.0.0.1", [f"{STRANGER}:4711"], STRANGER),
    ("10.0.0.1", ["[2001:4860::1]:4711"], "2001:4860::1"),
    ("10.0.0.1", ["[2001:4860::1]"], "2001:4860::1"),
    ("10.0.0.1", ["2001:4860:0:0::1"], "2001:4860::1"),
    ("2001:db8::1", [f"{STRANGER}"], STRANGER),
    ("::ffff:10.0.0.1", [f"{STRANGER}"], STRANGER),
    ("10.0.0.1", [f"::ffff:{STRANGER}"], STRANGER),
    ("10.0.0.1", ["[]", f"{STRANGER}:"], "10.0.0.1"),
]


@pytest.mark.parametrize(("peer", "headers", "client"), CLIENTS)
def test_the_client_is_the_peer_of_the_last_trusted_proxy(peer: str, headers: list[str], client: str) -> None:
    fields = [(b"host", b"proxy"), *((b"x-forwarded-for", value.encode("latin-1")) for value in headers)]
    others = [(b"forwarded", b"for=198.51.100.77"), (b"x_forwarded_for", b"198.51.100.66")]
    assert TRUSTED.client(peer, [*fields, *others]) == client
