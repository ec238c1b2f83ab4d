"""What is sent: small requests that cost little, in the shape of the endpoint that they are for."""

from __future__ import annotations

import json
import re
from typing import Any, Final

from llm_proxy.cli.failures import WrongUsage
from llm_proxy.version import VERSION

_MODEL: Final = "gpt-5.4-mini"
_MESSAGES: Final = [{"role": "user", "content": "Say hello."}]
#: Tokens that an answer may have; the Responses API takes no fewer.
_FEW: Final = 16

#: What is asked of the endpoints that people have, by the end of their paths.
_BODIES: Final[dict[str, dict[str, Any]]] = {
    "/chat/completions": {"messages": _MESSAGES, "max_completion_tokens": _FEW},
    "/messages": {"messages": _MESSAGES, "max_tokens": _FEW},
    "/responses": {"input": "Say hello.", "max_output_tokens": _FEW},
    "/embeddings": {"input": "hello"},
}
_HAVE_BODIES: Final = {"POST", "PUT", "PATCH"}

#: Sent where no `--header` replaces them; Anthropic refuses requests without its version, and others ignore it.
_HEADERS: Final = {
    "accept": "*/*",
    "content-type": "application/json",
    "user-agent": f"llm-proxy/{VERSION}",
    "anthropic-version": "2023-06-01",
}
#: What the command itself says of each request.
_OWN: Final = {"authorization", "connection", "content-length", "transfer-encoding"}


def url_of(base_url: str, path: str) -> str:
    """Join both; a base URL as SDKs have it, with `/v1` at its end, does not double that of the path."""
    if not re.fullmatch(r"/[\x21-\x7e]*", path) or "#" in path:
        raise WrongUsage(f"--path {path!r} is no path; it begins with / and has no space or # in it")
    if base_url.endswith("/v1") and path.startswith("/v1/"):
        base_url = base_url.removesuffix("/v1")
    return base_url + path


def method_of(text: str) -> str:
    """Return the method in capitals."""
    if not re.fullmatch(r"[A-Za-z]+", text) or text.upper() == "CONNECT":
        raise WrongUsage(f"--method {text!r} is none that a proxy forwards, such as POST")
    return text.upper()


def body_for(method: str, path: str, model: str | None, *, stream: bool) -> bytes:
    """Return a body that the endpoint understands; none for methods that have no body."""
    if method not in _HAVE_BODIES:
        return b""
    for end, body in _BODIES.items():
        if path.partition("?")[0].endswith(end):
            return json.dumps({"model": model or _MODEL, **body, **({"stream": True} if stream else {})}).encode()
    raise WrongUsage(f"what {path} takes is not known; give it with --body")


def headers_with(given: tuple[str, ...]) -> list[tuple[str, str]]:
    """Return the headers of each request, in the order in which they are sent."""
    headers = dict(_HEADERS)
    more: list[tuple[str, str]] = []
    for text in given:
        name, colon, value = text.partition(":")
        if not colon or not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name):
            # The value may be a secret, and so may be what has no name.
            raise WrongUsage("a --header is no header; write it as 'NAME: VALUE'")
        if name.lower() in _OWN:
            raise WrongUsage(f"--header cannot replace {name}, which the command says itself")
        headers.pop(name.lower(), None)
        more.append((name, value.strip()))
    return [*headers.items(), *more]
