"""How an HTTP/1.1 server must handle bytes: one row per rule, with the section that defines it."""

from __future__ import annotations

from attrs import frozen

H = b"Host: a\r\n"
GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"


def get(*lines: bytes, target: bytes = b"/", version: bytes = b"HTTP/1.1") -> bytes:
    """A GET with `Host` and these header lines."""
    return b"GET " + target + b" " + version + b"\r\n" + H + b"".join(line + b"\r\n" for line in lines) + b"\r\n"


def post(body: bytes, *lines: bytes) -> bytes:
    """A POST with `Host`, these header lines and this body."""
    return b"POST / HTTP/1.1\r\n" + H + b"".join(line + b"\r\n" for line in lines) + b"\r\n" + body


@frozen
class Row:
    """Bytes from a client, and the expected result.

    Attributes:
        section: of RFC 9112 unless another is named.
        says: the rule.
        wire: bytes that the client sends.
        answers: statuses of all responses, interim ones too.
        closes: the server closes the connection.
        bodies: bodies that the application has read, one per complete request.
        truncated: number of requests whose end never arrives.
        half_close: the client closes its side after `wire`.
        methods: methods of the requests, if one is HEAD.
    """

    section: str
    says: str
    wire: bytes
    answers: tuple[int, ...] = (200,)
    closes: bool = False
    bodies: tuple[bytes, ...] = (b"",)
    truncated: int = 0
    half_close: bool = False
    methods: tuple[str, ...] = ()


def refused(section: str, says: str, wire: bytes, status: int = 400) -> Row:
    """A row whose request is answered by the server itself, which closes the connection."""
    return Row(section, says, wire, (status,), closes=True, bodies=())


ROWS = (
    # Message parsing
    Row("2.2", "an empty line before a request is ignored", b"\r\n" + GET),
    Row("2.2", "so are several", b"\r\n\r\n\r\n" + GET),
    refused("2.2", "a bare LF is no line end of a request line", b"GET / HTTP/1.1\nHost: a\r\n\r\n"),
    refused("2.2", "a bare LF is no line end of a header", get(b"X: a\nY: b")),
    refused("2.2", "a bare LF is not the empty line", b"GET / HTTP/1.1\r\nHost: a\r\n\n"),
    refused("2.2", "a bare LF is no empty line before a request", b"\n" + GET),
    refused("2.2", "a bare CR is refused in a value", get(b"X: a\rb")),
    refused("2.2", "a bare CR is refused in a request line", b"GET /\r HTTP/1.1\r\nHost: a\r\n\r\n"),
    refused("2.2", "a bare CR is refused before CRLF", get(b"X: a\r")),
    refused("2.2", "white space before the first header is refused", b"GET / HTTP/1.1\r\n X: y\r\nHost: a\r\n\r\n"),
    refused("2.2", "a NUL is refused in a value", get(b"X: a\x00b")),
    refused("2.2", "a TLS handshake is no request", b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03\r\n\r\n"),
    Row("2.2", "half a request line, then the end", b"GET / HT", (), closes=True, bodies=(), half_close=True),
    Row("2.2", "half a header section, then the end", GET[:-2], (), closes=True, bodies=(), half_close=True),
    # Version
    Row("2.3", "HTTP/1.0 is answered and closed", b"GET / HTTP/1.0\r\n\r\n", closes=True),
    refused("2.3", "HTTP/1.2 is not spoken", get(version=b"HTTP/1.2"), 505),
    refused("2.3", "HTTP/0.9 with a version is not spoken", get(version=b"HTTP/0.9"), 505),
    refused("2.3", "HTTP/2.0 in a request line is not spoken", get(version=b"HTTP/2.0"), 505),
    refused("2.3", "the name of the protocol is upper-case", get(version=b"http/1.1")),
    refused("2.3", "versions have one digit on each side", get(version=b"HTTP/1.10")),
    refused("2.3", "RTSP is another protocol", get(version=b"RTSP/1.0")),
    refused("2.3", "ICE is another protocol", b"SOURCE / ICE/1.0\r\nHost: a\r\n\r\n"),
    Row(
        "RFC 9113 3.3",
        "HTTP/2 with prior knowledge is closed without a word",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00",
        (),
        closes=True,
        bodies=(),
    ),
    # Request line
    refused("3", "two spaces before the target", b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n"),
    refused("3", "two spaces behind the target", b"GET /  HTTP/1.1\r\nHost: a\r\n\r\n"),
    refused("3", "a space behind the version", b"GET / HTTP/1.1 \r\nHost: a\r\n\r\n"),
    refused("3", "a tab between the parts", b"GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n"),
    refused("3", "a space in the target", get(target=b"/a b")),
    refused("3", "a space before the method", b" " + GET),
    refused("3", "HTTP/0.9 without a version", b"GET /\r\n\r\n"),
    refused("3", "a line without a target", b"GET HTTP/1.1\r\nHost: a\r\n\r\n"),
    refused("3.1", "an unknown method", b"BREW / HTTP/1.1\r\nHost: a\r\n\r\n", 501),
    refused("3.1", "methods are case-sensitive", b"get / HTTP/1.1\r\nHost: a\r\n\r\n", 501),
    refused("3.1", "a method that is no token", b"G(T / HTTP/1.1\r\nHost: a\r\n\r\n"),
    Row("3.2.1", "the query belongs to the target", get(target=b"/a/b?c=d&e")),
    Row("3.2.2", "absolute-form", get(target=b"http://b/c?d=e")),
    Row("3.2.2", "absolute-form of TLS, with a port", get(target=b"HTTPS://b:8443/c")),
    Row("3.2.2", "absolute-form with an IPv6 address", get(target=b"http://[::1]:80/c")),
    Row("3.2.2", "absolute-form without a path", get(target=b"http://b")),
    Row("3.2.2", "absolute-form with a query and no path", get(target=b"http://b?d=e")),
    refused("3.2.2", "absolute-form without a Host header", b"GET http://b/ HTTP/1.1\r\n\r\n"),
    refused(
        "3.2.2", "absolute-form with a Host header that is malformed", b"GET http://b/ HTTP/1.1\r\nHost: /\r\n\r\n"
    ),
    refused("RFC 9110 4.2.1", "absolute-form without a host", get(target=b"http:///b")),
    refused("RFC 9110 4.2.1", "absolute-form with a port and no host", get(target=b"http://:80/b")),
    refused("RFC 9110 4.2.4", "absolute-form with user information", get(target=b"http://a@b/")),
    refused("3.2.2", "absolute-form with a malformed authority", get(target=b"http://b:c/")),
    refused("3.2.2", "absolute-form with a backslash in its authority", get(target=b"http://b\\c/")),
    refused("3.2.2", "absolute-form of another scheme", get(target=b"ftp://b/")),
    refused("3.2.2", "absolute-form with a fragment", get(target=b"http://b/#c")),
    refused("3.2.2", "absolute-form without slashes", get(target=b"http:b/")),
    refused("3.2.3", "CONNECT with a URL", b"CONNECT http://a/ HTTP/1.1\r\nHost: a\r\n\r\n"),
    refused("3.2.3", "authority-form", b"CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n"),
    refused("3.2.3", "CONNECT with a path", b"CONNECT / HTTP/1.1\r\nHost: a\r\n\r\n"),
    Row("3.2.4", "asterisk-form is for OPTIONS", b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n"),
    refused("3.2.4", "asterisk-form of another method", get(target=b"*")),
    refused("3.2", "a target that is no path", get(target=b"a")),
    refused("RFC 3986 2", "a target with a UTF-8 letter", get(target="/é".encode())),
    refused("RFC 3986 2", "a target with a control character", get(target=b"/\x01")),
    refused("RFC 3986 2", "a target with a delete character", get(target=b"/\x7f")),
    refused("3.2", "no Host", b"GET / HTTP/1.1\r\n\r\n"),
    refused("3.2", "two Hosts", get(b"Host: b")),
    refused("3.2", "two equal Hosts", get(b"Host: a")),
    refused("3.2", "two Hosts in HTTP/1.0", b"GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n"),
    refused("3.2", "a Host with a path", b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n"),
    refused("3.2", "a Host with user information", b"GET / HTTP/1.1\r\nHost: u@a\r\n\r\n"),
    Row("3.2", "an empty Host is allowed", b"GET / HTTP/1.1\r\nHost:\r\n\r\n"),
    Row("3.2", "a Host may be an IPv6 address with a port", b"GET / HTTP/1.1\r\nHost: [::1]:8080\r\n\r\n"),
    # Header fields
    refused("5.1", "a space before the colon", get(b"X : y")),
    refused("5.1", "a tab before the colon", get(b"X\t: y")),
    refused("5.1", "a field without a name", get(b": y")),
    refused("5.1", "a field without a colon", get(b"X")),
    refused("RFC 9110 5.1", "a name that is no token", get(b"X(y): z")),
    refused("RFC 9110 5.1", "a name with a non-ASCII letter", get("Xé: z".encode())),
    Row("RFC 9110 5.6.2", "a name with an underscore", get(b"session_id: z")),
    Row(
        "RFC 9110 5.6.2",
        "an underscore is no hyphen: such a name neither frames a body nor has to do with the connection",
        get(b"Content_Length: 99", b"Transfer_Encoding: chunked", b"Connection_: close", b"Proxy_Connection: close")
        + GET,
        (200, 200),
        bodies=(b"", b""),
    ),
    Row(
        "RFC 9110 5.6.2",
        "a length with a hyphen is beside one with an underscore",
        post(b"hello", b"Content_Length: 1", b"Content-Length: 5", b"content_length: 2", b"Expect_: x"),
        bodies=(b"hello",),
    ),
    Row("5.1", "white space round a value does not belong to it", get(b"X:  \t y \t ")),
    Row("RFC 9110 5.5", "a value may be empty", get(b"X:", b"Y: z")),
    Row("RFC 9110 5.5", "a value may hold bytes above ASCII", get(b"X: \xe9")),
    refused("RFC 9110 5.5", "a value may hold no control character", get(b"X: a\x01b")),
    refused("RFC 9110 5.5", "nor a delete character", get(b"X: a\x7fb")),
    refused("5.2", "obs-fold with a space", get(b"X: a\r\n b")),
    refused("5.2", "obs-fold with a tab", get(b"X: a\r\n\tb")),
    refused("5.2", "obs-fold of the last header", get(b"X: a\r\n ")),
    refused("3", "a request line that is too long", b"GET /" + b"a" * 2000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414),
    refused("3", "a request line that does not end", b"GET /" + b"a" * 2000, 414),
    refused("RFC 6585 5", "a header that is too long", get(b"X: " + b"a" * 2000), 431),
    refused("RFC 6585 5", "a header section that does not end", GET[:-2] + b"X: " + b"a" * 2000, 431),
    refused("RFC 6585 5", "too many headers", get(*[b"X: y"] * 200), 431),
    # Message body length
    Row("6.3", "no length means no body", post(b""), bodies=(b"",)),
    Row("6.3", "a body with Content-Length", post(b"hello", b"Content-Length: 5"), bodies=(b"hello",)),
    Row("6.3", "a body of no octets", post(b"", b"Content-Length: 0")),
    Row("6.3", "a GET may have a body", get(b"Content-Length: 2") + b"hi", bodies=(b"hi",)),
    Row("RFC 9110 8.6", "leading zeros are digits", post(b"hello", b"Content-Length: 005"), bodies=(b"hello",)),
    refused("RFC 9110 8.6", "a sign is no digit", post(b"hello", b"Content-Length: +5")),
    refused("RFC 9110 8.6", "nor is a minus", post(b"", b"Content-Length: -1")),
    refused("RFC 9110 8.6", "hexadecimal is not decimal", post(b"hello", b"Content-Length: 0x5")),
    refused("RFC 9110 8.6", "one number only", post(b"hello", b"Content-Length: 5 5")),
    refused("RFC 9110 8.6", "an empty length", post(b"hello", b"Content-Length:")),
    refused("RFC 9110 8.6", "a length beyond 64 bits", post(b"", b"Content-Length: 99999999999999999999")),
    refused("6.3", "two differing lengths", post(b"hello", b"Content-Length: 5", b"Content-Length: 6")),
    refused("6.3", "two equal lengths", post(b"hello", b"Content-Length: 5", b"Content-Length: 5")),
    refused("6.3", "a list of lengths", post(b"hello", b"Content-Length: 5, 5")),
    refused("6.1", "both framings", post(b"0\r\n\r\n", b"Content-Length: 5", b"Transfer-Encoding: chunked")),
    refused("6.1", "both framings, turned round", post(b"", b"Transfer-Encoding: chunked", b"Content-Length: 5")),
    refused("6.1", "both framings, one of them unknown", post(b"", b"Transfer-Encoding: x", b"Content-Length: 5")),
    refused("6.1", "an unknown coding", post(b"", b"Transfer-Encoding: gzip"), 501),
    refused("6.1", "a known and an unknown coding", post(b"", b"Transfer-Encoding: gzip, chunked"), 501),
    refused("6.1", "a coding that ends like another", post(b"", b"Transfer-Encoding: xchunked"), 501),
    refused("6.1", "identity is no coding any more", post(b"", b"Transfer-Encoding: identity"), 501),
    refused("6.3", "chunked is not the last coding", post(b"", b"Transfer-Encoding: chunked, gzip")),
    refused("6.1", "chunked twice", post(b"", b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked")),
    refused("6.1", "an empty coding", post(b"", b"Transfer-Encoding:")),
    refused("6.1", "HTTP/1.0 has no codings", b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    Row("7", "codings are case-insensitive", post(b"0\r\n\r\n", b"Transfer-Encoding: ChunKed")),
)
