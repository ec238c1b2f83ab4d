"""URLs of a provider in its answers lead back to the proxy, and nothing else of an answer changes."""

from __future__ import annotations

import json
from typing import Any

import attrs
import pytest
import trio
from attrs import define

from llm_proxy.config import Settings
from llm_proxy.config.kinds import InvalidValue
from llm_proxy.errors import ProxyError
from llm_proxy.gateway.exchange import Exchange
from llm_proxy.gateway.inbound import Inbound
from llm_proxy.gateway.providers import provider_file
from llm_proxy.gateway.providers.provider import Provider, Route
from llm_proxy.gateway.providers.rewriting import LONGEST, Rewriting, UrlField
from llm_proxy.gateway.upstream.pool import UpstreamPool
from llm_proxy.secrets.encryption import KeyRing
from tests.gateway.upstream.stage import PATIENT, Asked, Handler, Peer, stage

PUBLIC = "https://llm.example.com"
BATCH, BATCHES, UPLOAD = b"/v1/messages/batches/b", b"/v1/messages/batches", b"/upload/v1beta/files"
BUILT_IN = provider_file.load(Settings.load({"PUBLIC_URL": PUBLIC}, {}, None)).by_name
KEYRING, DIGEST = KeyRing.generate(), bytes(range(32))


def rewriting(provider: Provider) -> Rewriting:
    assert provider.rewriting is not None
    return provider.rewriting


@define
class Answered:
    headers: list[tuple[bytes, bytes]]
    body: bytes
    messages: list[dict[str, Any]]
    asked: Asked
    idle: int

    def values(self, name: bytes) -> list[bytes]:
        return [value for key, value in self.headers if key == name]


async def ask(provider: Provider, path: bytes, handler: Handler, method: str = "GET") -> Answered:
    """Run one exchange; the `Host` of the client is foreign, and it accepts compressed answers."""
    messages: list[dict[str, Any]] = []

    async def receive() -> Any:
        await trio.sleep_forever()

    async def send(message: dict[str, Any]) -> None:
        await trio.lowlevel.checkpoint()
        messages.append(message)

    async with stage(handler) as upstream:
        pool = UpstreamPool(upstream.origin, PATIENT)
        provider = attrs.evolve(provider, origin=upstream.origin)
        headers = [(b"host", b"evil.example"), (b"accept-encoding", b"gzip")]
        scope = {"method": method, "raw_path": path, "query_string": b"", "headers": headers}
        inbound = Inbound("0190", trio.current_time(), Route(provider, path, "openai"), scope, receive, 1000)
        exchange = Exchange(inbound, send)
        exchange.upload_url = lambda url: rewriting(provider).with_session(KEYRING, DIGEST, url)
        failure: ProxyError | None = None
        try:
            with trio.fail_after(20):
                await exchange.run(provider, pool, "key")
        except ProxyError as error:
            failure = error
        idle = pool.idle
        assert pool.in_use == 0
        pool.close()
    if failure is not None:
        assert messages == []
        raise failure
    body = b"".join(message.get("body", b"") for message in messages)
    return Answered(messages[0]["headers"], body, messages, upstream.asked[-1], idle)


def answering(
    template: str, *fields: str, status: str = "200 OK", length: int | None = None, end: bool = False
) -> Handler:
    """Answer with a body in which `OWN` is the provider's own origin."""

    async def handler(peer: Peer) -> None:
        while await peer.request():
            own = f"http://127.0.0.1:{peer.socket.getsockname()[1]}"
            body = template.replace("OWN", own).encode()
            lines = [
                f"HTTP/1.1 {status}",
                "Content-Type: application/json",
                *(one.replace("OWN", own) for one in fields),
            ]
            if not end:
                lines.append(f"Content-Length: {len(body) if length is None else length}")
            await peer.send("\r\n".join([*lines, "", ""]).encode() + body)
            if end or length is not None:
                return

    return handler


DIGESTS = ('ETag: "e"', "Content-Digest: sha-256=:x:", "Repr-Digest: sha-256=:x:", "Digest: md5=x", "Content-MD5: x")


@pytest.mark.parametrize(
    ("path", "template", "expected"),
    [
        (BATCH, '{"id": "b","results_url": "OWN/v1/r?a=1#f"}', '{"id":"b","results_url":"PUBLIC/v1/r?a=1#f"}'),
        (BATCH + b"/cancel", '{"results_url":"OWN/v1/r"}', '{"results_url":"PUBLIC/v1/r"}'),
        (BATCHES, '{"results_url":"OWN/v1/r","n":1.00}', '{"results_url":"PUBLIC/v1/r","n":1.00}'),
        (
            BATCHES,
            '{"data": [{"results_url":"OWN/v1/r"}, {"results_url": null},[1 ]],"n":1e400,"m":{"a" : 1}}',
            '{"data":[{"results_url":"PUBLIC/v1/r"},{"results_url": null},[1 ]],"n":1e400,"m":{"a" : 1}}',
        ),
        (BATCH, r'{"results_url":"http:\/\/127.0.0.1:PORT\/v1\/r\u00e9"}', '{"results_url":"PUBLIC/v1/ré"}'),
    ],
)
async def test_a_url_of_the_provider_becomes_one_of_the_proxy(path: bytes, template: str, expected: str) -> None:
    async def handler(peer: Peer) -> None:
        port = str(peer.socket.getsockname()[1])
        await answering(template.replace("PORT", port), *DIGESTS, "Age: 1")(peer)

    found = await ask(BUILT_IN["anthropic"], path, handler)
    assert found.body.decode() == expected.replace("PUBLIC", f"{PUBLIC}/anthropic")
    assert found.values(b"content-length") == [b"%d" % len(found.body)]
    assert found.values(b"x-llm-proxy-edited") == [b"rewrite_urls"]
    names = {name for name, _ in found.headers}
    assert not names & {b"etag", b"content-digest", b"repr-digest", b"digest", b"content-md5"}
    assert found.values(b"age") == [b"1"]
    assert found.asked.values(b"accept-encoding") == [b"identity"]
    assert found.idle == 1


@pytest.mark.parametrize(
    "template",
    [
        '{"results_url": null, "n": 1}',
        '{"results_url" : "https://api.anthropic.com.evil.example/v1/r"}',
        '{"results_url" : "https://127.0.0.1/v1/r"}',
        '{"results_url" : "OWN1/v1/r"}',
        '{"results_url" : "http://user@127.0.0.1/v1/r"}',
        '{"results_url" : ["OWN/v1/r", 1]}'.replace("OWN", "http://other.example"),
        '{"results_url" : "/v1/r"}',
        '{"other" : "OWN/v1/r", "data": [{"results_url": "OWN/v1/r"}]}',
        "[]",
        '"OWN/v1/r"',
        "",
    ],
)
async def test_an_answer_without_a_url_of_the_provider_is_relayed_byte_for_byte(template: str) -> None:
    found = await ask(BUILT_IN["anthropic"], BATCH, answering(template, *DIGESTS))
    assert found.body == template.replace("OWN", f"http://127.0.0.1:{_port(found)}").encode()
    assert found.values(b"x-llm-proxy-edited") == []
    assert found.values(b"etag") == [b'"e"']
    assert found.values(b"content-digest") == [b"sha-256=:x:"]


def _port(found: Answered) -> str:
    return found.asked.values(b"host")[0].decode().rpartition(":")[2]


async def test_errors_of_the_provider_and_other_endpoints_are_not_held() -> None:
    sent = trio.Event()

    async def handler(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 404 X\r\nContent-Length: 4\r\nETag: e\r\n\r\nab")
        await sent.wait()
        await peer.send(b"cd")

    for path in (BATCH, BATCH + b"/results"):
        sent = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_set_later, sent)
            found = await ask(BUILT_IN["anthropic"], path, handler)
        assert [message.get("body") for message in found.messages] == [None, b"ab", b"cd"]
        assert found.values(b"etag") == [b"e"]


async def _set_later(event: trio.Event) -> None:
    await trio.testing.wait_all_tasks_blocked(0.01)
    event.set()


@pytest.mark.parametrize("chunked", [False, True])
async def test_an_answer_that_is_cut_at_any_byte_is_an_error(chunked: bool) -> None:
    body = b'{"id":"b","results_url":"http://x.example/r"}'
    framing = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % len(body)
    text = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if chunked else body
    for cut in range(len(text)):

        async def handler(peer: Peer, cut: int = cut) -> None:
            await peer.request()
            await peer.send(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n%b\r\n\r\n" % framing + text[:cut])

        with pytest.raises(ProxyError) as caught:
            await ask(BUILT_IN["anthropic"], BATCH, handler)
        assert (caught.value.status, caught.value.code) == (502, "upstream_unreachable")


async def test_a_cut_answer_whose_end_is_that_of_the_connection_is_an_error() -> None:
    text = '{"id":"b","results_url":"http://x.example/r"}'
    for cut in range(1, len(text)):
        with pytest.raises(ProxyError, match="not JSON"):
            await ask(BUILT_IN["anthropic"], BATCH, answering(text[:cut], end=True))
    assert (await ask(BUILT_IN["anthropic"], BATCH, answering(text, end=True))).body == text.encode()


@pytest.mark.parametrize(
    ("handler", "reason"),
    [
        (answering('{"n": NaN, "results_url": "OWN/v1/r"}'), "not JSON"),
        (answering('\ufeff{"results_url": "OWN/v1/r"}'), "not JSON"),
        (answering("[" * 100_000), "not JSON"),
        (answering("x", "Content-Encoding: gzip"), "compressed"),
        (answering("x", "Content-Encoding: identity, br"), "compressed"),
        (answering(" " * (LONGEST + 1)), f"longer than {LONGEST} bytes"),
    ],
)
async def test_an_answer_that_cannot_be_edited_is_not_relayed(handler: Handler, reason: str) -> None:
    with pytest.raises(ProxyError, match=reason) as caught:
        await ask(BUILT_IN["anthropic"], BATCH, handler)
    assert (caught.value.status, caught.value.code) == (502, "upstream_unreachable")


async def test_a_long_answer_is_held_up_to_the_limit_and_not_longer() -> None:
    sizes = [0]

    async def handler(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100000000\r\n\r\n")
        for _ in range(1_000):
            await peer.send(b" " * 65536)
            sizes[0] += 65536

    with pytest.raises(ProxyError, match="Ask for fewer items"):
        await ask(BUILT_IN["anthropic"], BATCHES, handler)
    assert sizes[0] < 16 * LONGEST


async def test_the_url_of_an_upload_session_in_a_header_leads_to_the_proxy_with_the_token_that_began_it() -> None:
    urls = (
        "X-Goog-Upload-URL: OWN/upload/v1beta/files?upload_id=u%31&x=y",
        "X-Goog-Upload-Control-URL: OWN/c?upload_id=u",
    )
    found = await ask(BUILT_IN["gemini"], UPLOAD, answering("", *urls, "X-Other: OWN/x", *DIGESTS), "POST")
    (url,) = found.values(b"x-goog-upload-url")
    (control,) = found.values(b"x-goog-upload-control-url")
    begin = f"{PUBLIC}/gemini/upload/v1beta/files?upload_id=u%31&x=y&llm-proxy-session="
    assert url.decode().startswith(begin)
    assert control.decode().startswith(f"{PUBLIC}/gemini/c?upload_id=u&llm-proxy-session=")
    assert found.values(b"x-other") == [f"http://127.0.0.1:{_port(found)}/x".encode()]
    assert found.values(b"x-llm-proxy-edited") == [b"rewrite_urls"]
    assert found.values(b"etag") == []
    assert found.asked.values(b"accept-encoding") == [b"gzip"]
    query = url.partition(b"?")[2]
    assert rewriting(BUILT_IN["gemini"]).session_digest(KEYRING, UPLOAD, query) == DIGEST
    assert BUILT_IN["gemini"].target(UPLOAD, query, "key") == UPLOAD + b"?upload_id=u%31&x=y"


async def test_other_urls_in_the_header_stay_as_they_are() -> None:
    found = await ask(BUILT_IN["gemini"], UPLOAD, answering("x", "X-Goog-Upload-URL: https://x.example/?upload_id=u"))
    assert found.values(b"x-goog-upload-url") == [b"https://x.example/?upload_id=u"]
    assert found.values(b"x-llm-proxy-edited") == []


def session(keyring: KeyRing = KEYRING, provider: str = "gemini", upload_id: str = "u") -> bytes:
    named = attrs.evolve(BUILT_IN["gemini"], name=provider)
    url = rewriting(named).with_session(keyring, DIGEST, f"{PUBLIC}/gemini/x?upload_id={upload_id}")
    return url.partition("?")[2].encode()


SESSION = session().partition(b"&")[2]


@pytest.mark.parametrize(
    "query",
    [
        session(KeyRing.generate()),
        session(provider="other"),
        b"upload_id=v&" + SESSION,
        b"upload_id=u&upload_id=u&" + SESSION,
        b"upload_id=u&" + SESSION + b"&" + SESSION,
        SESSION,
        b"upload_id=u&llm-proxy-session=",
        b"upload_id=u&llm-proxy-session=plain:" + DIGEST.hex().encode(),
        b"upload_id=u&" + SESSION[:-8],
    ],
)
@pytest.mark.parametrize("allow_plaintext", [False, True])
def test_a_forged_upload_session_is_refused(query: bytes, allow_plaintext: bool) -> None:
    keyring = KeyRing.from_setting(KEYRING.to_setting(), allow_plaintext=allow_plaintext)
    gemini = rewriting(BUILT_IN["gemini"])
    assert gemini.session_digest(keyring, UPLOAD, session()) == DIGEST
    with pytest.raises(ProxyError) as caught:
        gemini.session_digest(keyring, UPLOAD, query)
    assert caught.value.code == "token_invalid"


def test_without_an_encryption_key_there_are_no_upload_sessions() -> None:
    keyring = KeyRing(allow_plaintext=True)
    url = f"{PUBLIC}/gemini/x?upload_id=u"
    gemini = rewriting(BUILT_IN["gemini"])
    assert gemini.with_session(keyring, DIGEST, url) == url
    with pytest.raises(ProxyError):
        gemini.session_digest(keyring, UPLOAD, b"upload_id=u&llm-proxy-session=plain:" + DIGEST.hex().encode())
    assert gemini.session_digest(keyring, UPLOAD, b"upload_id=u") is None


def test_only_a_path_of_uploads_has_upload_sessions() -> None:
    gemini, path = rewriting(BUILT_IN["gemini"]), b"/v1beta/models/gemini-2.5-pro:generateContent"
    query = session()
    assert gemini.session_digest(KEYRING, path, query) is None
    assert gemini.without_session(path, query) == query


@pytest.mark.parametrize("text", ["", ".", "a..b", "a[]", "a b", "header:", "header:a b", "header:a_b", "$.a"])
def test_a_wrong_field_is_refused(text: str) -> None:
    with pytest.raises(InvalidValue):
        UrlField.parse(text)


def test_a_field_is_a_place_in_json_or_a_header() -> None:
    assert UrlField.parse("data.results_url") == UrlField(place=("data", "results_url"))
    assert UrlField.parse("header:X-Upload-URL") == UrlField(header=b"x-upload-url")
    assert json.dumps(str(UrlField.parse("a.b"))) == '"a.b"'
