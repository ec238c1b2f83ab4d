"""A strict parser of responses."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from attrs import frozen


class Truncated(Exception):
    """The response is incomplete."""


@frozen
class Answer:
    """A response; `whole` is false if it ends with the connection."""

    status: int
    headers: dict[str, str]
    body: bytes
    whole: bool = True

    @property
    def closing(self) -> bool:
        return self.headers.get("connection") == "close"


def read_answers(data: bytes, methods: Iterable[str] = ()) -> list[Answer]:
    """Parse all responses in `data` to requests with these methods (default: GET).

    Raises:
        Truncated: the last one is not complete.
    """
    return list(_answers(data, iter(methods)))


def _answers(data: bytes, methods: Iterator[str]) -> Iterator[Answer]:
    while data:
        head, separator, data = data.partition(b"\r\n\r\n")
        if not separator:
            raise Truncated(head)
        line, *fields = head.split(b"\r\n")
        version, status, _ = line.decode("ascii").split(" ", 2)
        assert version == "HTTP/1.1"
        headers: dict[str, str] = {}
        for field in fields:
            name, colon, value = field.decode("latin-1").partition(": ")
            assert colon, field
            assert name not in headers, f"two {name} headers"
            headers[name] = value
        if status.startswith("1"):
            yield Answer(int(status), headers, b"")
            continue
        if next(methods, "GET") == "HEAD" or status in {"204", "304"}:
            assert "transfer-encoding" not in headers
            yield Answer(int(status), headers, b"")
        elif headers.get("transfer-encoding") == "chunked":
            assert "content-length" not in headers
            body, data = _unchunk(data)
            yield Answer(int(status), headers, body)
        elif "content-length" in headers:
            length = int(headers["content-length"])
            if len(data) < length:
                raise Truncated(data)
            yield Answer(int(status), headers, data[:length])
            data = data[length:]
        else:
            yield Answer(int(status), headers, data, whole=False)
            return


def _unchunk(data: bytes) -> tuple[bytes, bytes]:
    body = b""
    while True:
        line, separator, data = data.partition(b"\r\n")
        if not separator:
            raise Truncated(body)
        size = int(line, 16)
        if len(data) < size + 2:
            raise Truncated(body)
        chunk, end, data = data[:size], data[size : size + 2], data[size + 2 :]
        assert end == b"\r\n"
        body += chunk
        if not size:
            return body, data
