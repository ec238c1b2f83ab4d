from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_proxy.errors import BadRequest, TokenInvalid, UpstreamUnreachable
from llm_proxy.gateway.http import headers

TOKEN = b"sk-" + b"a1_-" * 10 + b"xyz"
OTHER = b"sk-" + b"b" * 43
CREDENTIAL = (b"authorization", b"Bearer upstream-key")

NEVER_UPSTREAM = [
    b"connection",
    b"keep-alive",
    b"proxy-authenticate",
    b"proxy-authorization",
    b"proxy-connection",
    b"te",
    b"trailer",
    b"transfer-encoding",
    b"upgrade",
    b"http2-settings",
    b"host",
    b"content-length",
    b"expect",
    b"x-api-key",
    b"api-key",
    b"x-goog-api-key",
    b"cookie",
    b"cookie2",
    b"openai-organization",
    b"openai-project",
    b"anthropic-organization-id",
    b"anthropic-workspace-id",
    b"set-cookie",
    b"server",
    b"alt-svc",
    b"forwarded",
    b"via",
    b"x-real-ip",
    b"x-forwarded-for",
    b"x-forwarded-host",
    b"x-forwarded-proto",
    b"true-client-ip",
    *(
        b"x-azure-clientip x-azure-socketip wl-proxy-client-ip proxy-client-ip x-appengine-user-ip "
        b"x-appengine-country x-remote-ip x-remote-addr remote-addr x-originating-ip x-akamai-edgescape "
        b"cf-ipcountry cf-ipcity cf-access-jwt-assertion cloudfront-viewer-address x-vercel-ip-country "
        b"x-envoy-external-address x-envoy-retry-on client-cert x-forwarded x-http-method-override "
        b"x-http-method x-method-override x-original-url x-rewrite-url x-original-host "
        b"x-goog-iap-jwt-assertion x-goog-authenticated-user-email x-amzn-oidc-data x-amzn-oidc-accesstoken "
        b"x-amzn-mtls-clientcert x-auth-request-email x-auth-request-access-token x-ms-client-principal "
        b"x-ms-client-principal-name x-ms-token-aad-access-token tailscale-user-login remote-user remote-groups "
        b"x-remote-user x-client-cert x-client-certificate x-ssl-client-cert x-ssl-client-s-dn ssl-client-cert "
        b"x-proxy-authorization x-proxyuser-ip x-coming-from x-real-port x-client-port cf-ray cf-worker cf-ew-via "
        b"fly-region x-azure-fdid x-override-url x-http-path-override x-backend-host x-goog-user-project "
        b"ocp-apim-subscription-key "
    ).split(),
]

NEVER_DOWNSTREAM = [
    b"connection",
    b"keep-alive",
    b"proxy-authenticate",
    b"proxy-connection",
    b"te",
    b"trailer",
    b"transfer-encoding",
    b"upgrade",
    b"set-cookie",
    b"server",
    b"alt-svc",
    b"openai-organization",
    b"openai-project",
    b"anthropic-organization-id",
    b"anthropic-workspace-id",
    b"ocp-apim-subscription-key",
    b"x-goog-user-project",
    b"x-accel-redirect",
    b"x-accel-expires",
    b"x-accel-limit-rate",
    b"x-accel-charset",
    b"x-accel-buffering",
    b"x-sendfile",
    b"x-lighttpd-send-file",
    b"x-reproxy-url",
    b"x-reproxy-file",
    *(
        b"x-sendfile2 x-litespeed-location x-accel-something-new x-envoy-immediate-health-check-fail "
        b"x-envoy-ratelimited surrogate-control cdn-cache-control clear-site-data "
        b"strict-transport-security public-key-pins expect-ct nel report-to reporting-endpoints "
        b"service-worker-allowed set-login accept-ch "
    ).split(),
]


class TestTokenOf:
    @pytest.mark.parametrize(
        "fields",
        [
            [(b"authorization", b"Bearer " + TOKEN)],
            [(b"authorization", b"bearer  " + TOKEN + b" ")],
            [(b"x-api-key", TOKEN)],
            [(b"api-key", TOKEN)],
            [(b"x-goog-api-key", TOKEN)],
            [(b"authorization", b"Bearer " + TOKEN), (b"x-api-key", TOKEN)],
            [(b"authorization", b"Basic dTpw"), (b"x-api-key", TOKEN)],
            [(b"authorization", b"Bearer "), (b"api-key", TOKEN)],
        ],
    )
    def test_token_is_found_in_each_field_that_sdks_use(self, fields: list[tuple[bytes, bytes]]) -> None:
        assert headers.token_of([(b"accept", b"*/*"), *fields]) == TOKEN

    @pytest.mark.parametrize(
        "fields",
        [
            [],
            [(b"authorization", b"Basic dTpw")],
            [(b"authorization", TOKEN)],
            [(b"authorization", b"Bearer")],
            [(b"x-api-key", b" ")],
            [(b"cookie", TOKEN)],
        ],
    )
    def test_without_a_token_the_result_is_none(self, fields: list[tuple[bytes, bytes]]) -> None:
        assert headers.token_of(fields) is None

    def test_two_different_tokens_are_refused(self) -> None:
        with pytest.raises(TokenInvalid):
            headers.token_of([(b"authorization", b"Bearer " + TOKEN), (b"x-api-key", OTHER)])
        with pytest.raises(TokenInvalid):
            headers.token_of([(b"x-api-key", TOKEN), (b"x-api-key", OTHER)])


class TestRequestHeaders:
    def test_other_headers_are_forwarded_in_order_before_the_credential(self) -> None:
        sent = [
            (b"host", b"proxy.example"),
            (b"user-agent", b"OpenAI/Python  2"),
            (b"authorization", b"Bearer " + TOKEN),
            (b"x-custom", b"\xff b,  c"),
            (b"accept-encoding", b"gzip, br"),
            (b"x-custom", b""),
            (b"content-length", b"3"),
        ]
        assert headers.request_headers(sent, [CREDENTIAL]) == [
            (b"user-agent", b"OpenAI/Python  2"),
            (b"x-custom", b"\xff b,  c"),
            (b"accept-encoding", b"gzip, br"),
            (b"x-custom", b""),
            CREDENTIAL,
        ]

    @pytest.mark.parametrize("name", NEVER_UPSTREAM)
    def test_headers_not_meant_for_the_provider_are_stripped(self, name: bytes) -> None:
        assert headers.request_headers([(name, b"close")], [CREDENTIAL]) == [CREDENTIAL]

    def test_connection_cannot_remove_the_credential(self) -> None:
        sent = [(b"connection", b"Authorization, X-Api-Key"), (b"connection", b" x-hop ,close"), (b"x-hop", b"1")]
        assert headers.request_headers(sent, [CREDENTIAL]) == [CREDENTIAL]

    @pytest.mark.parametrize("value", [b"a\r\nx-api-key: b", b"a\nb", b"\x00", b"\x7f"])
    def test_a_value_that_would_split_the_request_is_refused(self, value: bytes) -> None:
        with pytest.raises(BadRequest):
            headers.request_headers([(b"x-custom", value)], [CREDENTIAL])

    @pytest.mark.parametrize(
        "name",
        [
            b"x-client-request-id",
            b"x-goog-api-client",
            b"cf-aig-metadata",
            b"x-ms-client-request-id",
            b"x-amzn-trace-id",
        ],
    )
    def test_a_name_similar_to_one_of_a_reverse_proxy_is_forwarded(self, name: bytes) -> None:
        assert headers.request_headers([(name, b"1")], [CREDENTIAL]) == [(name, b"1"), CREDENTIAL]

    @pytest.mark.parametrize("name", [b"session_id", b"X_Trace".lower(), b"http_referer", b"anthropic_version", b"_"])
    def test_a_name_with_an_underscore_is_forwarded(self, name: bytes) -> None:
        assert headers.request_headers([(name, b"1")], [CREDENTIAL]) == [(name, b"1"), CREDENTIAL]

    @pytest.mark.parametrize(
        "name",
        [
            *[name.replace(b"-", b"_") for name in NEVER_UPSTREAM if b"-" in name],
            b"x_forwarded-anything",
            b"x-api_key",
            b"http_x_forwarded_for",
            b"content_type",
            b"content_encoding",
            b"accept_encoding",
        ],
    )
    def test_a_name_that_with_dashes_is_a_stripped_or_checked_one_is_stripped(self, name: bytes) -> None:
        assert headers.request_headers([(name, b"1")], [CREDENTIAL]) == [CREDENTIAL]

    def test_a_name_that_with_dashes_is_one_that_the_provider_entry_checks_is_stripped(self) -> None:
        sent = [(b"x-team", b"a"), (b"x_team", b"b"), (b"x_te-am", b"c")]
        assert headers.request_headers(sent, [CREDENTIAL], frozenset({b"x-team"})) == [sent[0], sent[2], CREDENTIAL]

    def test_a_header_of_the_provider_entry_replaces_the_clients(self) -> None:
        sent = [(b"x-tenant", b"a"), (b"x_tenant", b"b"), (b"x-other", b"c")]
        made = headers.request_headers(sent, [CREDENTIAL], static={b"x-tenant": b"d"})
        assert made == [(b"x-other", b"c"), (b"x-tenant", b"d"), CREDENTIAL]

    def test_a_name_that_connection_lists_with_dashes_is_stripped(self) -> None:
        sent = [(b"connection", b"x-hop"), (b"x_hop", b"1"), (b"x-hop", b"1")]
        assert headers.request_headers(sent, [CREDENTIAL]) == [CREDENTIAL]

    def test_accept_encoding_is_reduced_to_codings_that_the_meter_can_read(self) -> None:
        sent = [(b"accept-encoding", b"br;q=0, compress"), (b"x", b"y"), (b"accept-encoding", b"*")]
        readable = (b"accept-encoding", b"br;q=0, gzip, zstd, deflate")
        assert headers.request_headers(sent, [CREDENTIAL]) == [(b"x", b"y"), readable, CREDENTIAL]

    def test_the_cache_of_names_is_bounded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        remembered = type(headers._forwarded_upstream)(frozenset({b"host"}), (), frozenset())
        monkeypatch.setattr(headers, "_forwarded_upstream", remembered)
        sent = [(b"x-%d" % number, b"") for number in range(3000)] + [(b"x-" + b"y" * 100, b"")]
        assert headers.request_headers(sent, [(b"k", b"v")])[:-1] == sent
        assert len(remembered) == 1024
        assert headers.request_headers([(b"x-2999", b""), (b"host", b"h")], [(b"k", b"v")]) == [
            (b"x-2999", b""),
            (b"k", b"v"),
        ]
        assert max(map(len, remembered)) <= 64

    def test_a_tab_is_part_of_a_value(self) -> None:
        assert headers.request_headers([(b"x", b"a\tb")], [CREDENTIAL]) == [(b"x", b"a\tb"), CREDENTIAL]


class TestResponseHeaders:
    def test_other_headers_are_forwarded_in_order_before_the_proxys_own(self) -> None:
        received = [
            (b"Date", b"Mon"),
            (b"Content-Type", b"application/json"),
            (b"Content-Length", b"12"),
            (b"X-Request-ID", b"req_1"),
            (b"x-a", b"1"),
            (b"x-a", b"2"),
        ]
        assert headers.response_headers(received, b"0190", 1.234) == [
            (b"date", b"Mon"),
            (b"content-type", b"application/json"),
            (b"content-length", b"12"),
            (b"x-request-id", b"req_1"),
            (b"x-a", b"1"),
            (b"x-a", b"2"),
            (b"x-llm-proxy-request-id", b"0190"),
            (b"x-llm-proxy-overhead-ms", b"1.23"),
        ]

    def test_a_request_id_is_added_if_the_provider_sent_none(self) -> None:
        assert (b"x-request-id", b"0190") in headers.response_headers([], b"0190", 0)

    @pytest.mark.parametrize("name", NEVER_DOWNSTREAM)
    @pytest.mark.parametrize("upper", [True, False])
    def test_headers_not_meant_for_the_client_are_stripped(self, name: bytes, upper: bool) -> None:
        received = [(name.upper() if upper else name, b"x")]
        assert name not in dict(headers.response_headers(received, b"0190", 0))

    @pytest.mark.parametrize("name", [name.replace(b"-", b"_") for name in NEVER_DOWNSTREAM if b"-" in name])
    def test_a_name_that_with_dashes_is_a_stripped_one_is_stripped(self, name: bytes) -> None:
        assert name not in dict(headers.response_headers([(name.title(), b"x")], b"0190", 0))

    @pytest.mark.parametrize("name", [b"content_length", b"content_type", b"x_request_id", b"x_llm_proxy_anything"])
    def test_a_name_that_with_dashes_is_one_that_the_proxy_reads_or_sets_is_stripped(self, name: bytes) -> None:
        assert name not in dict(headers.response_headers([(name, b"x")], b"0190", 0))

    @pytest.mark.parametrize(
        "name", [b"x_trace", b"content-security-policy", b"x-envoy-upstream-service-time", b"refresh", b"cache-control"]
    )
    def test_a_header_for_one_response_only_is_forwarded(self, name: bytes) -> None:
        assert (name, b"x") in headers.response_headers([(name, b"x")], b"0190", 0)

    def test_the_provider_cannot_set_headers_of_the_proxy(self) -> None:
        received = [(b"X-LLM-Proxy-Request-ID", b"forged"), (b"x-llm-proxy-overhead-ms", b"0")]
        sent = headers.response_headers(received, b"0190", 2)
        assert sent == [
            (b"x-request-id", b"0190"),
            (b"x-llm-proxy-request-id", b"0190"),
            (b"x-llm-proxy-overhead-ms", b"2.00"),
        ]

    @pytest.mark.parametrize("kind", [b"text/event-stream", b"Text/Event-Stream ; charset=utf-8"])
    def test_an_event_stream_gets_x_accel_buffering_no(self, kind: bytes) -> None:
        received = [(b"x-accel-buffering", b"yes"), (b"content-type", kind)]
        sent = headers.response_headers(received, b"0190", 0)
        assert [value for name, value in sent if name == b"x-accel-buffering"] == [b"no"]

    def test_headers_listed_by_connection_are_removed_but_not_the_proxys_own(self) -> None:
        received = [(b"Connection", b"X-Hop, x-llm-proxy-request-id, X-Request-ID"), (b"X-Hop", b"1")]
        sent = dict(headers.response_headers(received, b"0190", 0))
        assert b"x-hop" not in sent
        assert sent[b"x-llm-proxy-request-id"] == sent[b"x-request-id"] == b"0190"

    def test_a_value_that_would_split_the_response_is_refused(self) -> None:
        with pytest.raises(UpstreamUnreachable):
            headers.response_headers([(b"x", b"a\r\nset-cookie: b")], b"0190", 0)


NAMES = st.sampled_from(
    [*NEVER_UPSTREAM, b"accept", b"x-a", b"x-b", b"content-type", b"authorization", b"x-request-id"]
)
VALUES = st.binary(max_size=8).map(lambda raw: bytes(byte for byte in raw if byte >= 0x20 and byte != 0x7F))
CONNECTION = st.tuples(
    st.just(b"connection"), st.lists(NAMES.flatmap(lambda n: st.sampled_from([n, n.upper()]))).map(b" , ".join)
)
FIELDS = st.lists(st.tuples(NAMES, VALUES) | CONNECTION, max_size=12)


def named(fields: list[tuple[bytes, bytes]]) -> set[bytes]:
    return {
        part.strip().lower() for name, value in fields if name.lower() == b"connection" for part in value.split(b",")
    }


@given(FIELDS)
def test_of_a_request_exactly_the_stripped_headers_are_missing(fields: list[tuple[bytes, bytes]]) -> None:
    *sent, last = headers.request_headers(fields, [CREDENTIAL])
    gone = {*NEVER_UPSTREAM, b"authorization"} | named(fields)
    assert last == CREDENTIAL
    assert sent == [field for field in fields if field[0] not in gone]


@given(FIELDS)
def test_of_a_response_exactly_the_stripped_headers_are_missing(fields: list[tuple[bytes, bytes]]) -> None:
    received = [(name.title(), value) for name, value in fields]
    sent = headers.response_headers(received, b"0190", 0)
    gone = set(NEVER_DOWNSTREAM) | named(fields) | {b"http2-settings", b"proxy-authorization"}
    expected = [field for field in fields if field[0] not in gone]
    kept = sent[: len(expected)]
    assert kept == expected
    assert {name for name, _ in sent[len(expected) :]} <= {
        b"x-request-id",
        b"x-llm-proxy-request-id",
        b"x-llm-proxy-overhead-ms",
        b"x-accel-buffering",
    }
