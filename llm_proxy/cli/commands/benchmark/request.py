"""The request that is sent: small and cheap, in the form that its endpoint expects."""

from __future__ import annotations

import json
import re
from typing import Any, Final

from llm_proxy import __version__
from llm_proxy.cli.failures import WrongUsage

_MODEL: Final = "gpt-5.4-mini"
_MESSAGES: Final = [{"role": "user", "content": "Say hello."}]
#: Maximum number of tokens of a response; the minimum that the Responses API accepts.
_MAX_TOKENS: Final = 16

#: Bodies by the end of the path.
_BODIES: Final[dict[str, dict[str, Any]]] = {
    "/chat/completions": {"messages": _MESSAGES, "max_completion_tokens": _MAX_TOKENS},
    "/messages": {"messages": _MESSAGES, "max_tokens": _MAX_TOKENS},
    "/responses": {"input": "Say hello.", "max_output_tokens": _MAX_TOKENS},
    "/embeddings": {"input": "hello"},
}
_HAVE_BODIES: Final = {"POST", "PUT", "PATCH"}

#: Default headers. Anthropic requires its version; other providers ignore it.
_HEADERS: Final = {
    "accept": "*/*",
    "content-type": "application/json",
    "user-agent": f"llm-proxy/{__version__}",
    "anthropic-version": "2023-06-01",
}
#: Headers that the command sets itself.
_OWN: Final = {"authorization", "connection", "content-length", "transfer-encoding"}


def url_of(base_url: str, path: str) -> str:
    """Join both. SDKs have base URLs that end in `/v1`; it is not doubled."""
    if not re.fullmatch(r"/[\x21-\x7e]*", path) or "#" in path:
        raise WrongUsage(f"--path {path!r} is not a path; it must start with / and must not contain a space or #")
    if base_url.endswith("/v1") and path.startswith("/v1/"):
        base_url = base_url.removesuffix("/v1")
    return base_url + path


def method_of(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z]+", text) or text.upper() == "CONNECT":
        raise WrongUsage(f"--method {text!r} is not a method that the proxy forwards, e.g. POST")
    return text.upper()


def body_for(method: str, path: str, model: str | None, *, stream: bool) -> bytes:
    """The default body of the endpoint; empty for methods without a body."""
    if method not in _HAVE_BODIES:
        return b""
    for end, body in _BODIES.items():
        if path.partition("?")[0].endswith(end):
            return json.dumps({"model": model or _MODEL, **body, **({"stream": True} if stream else {})}).encode()
    raise WrongUsage(f"there is no default body for {path}; give one with --body")


def headers_with(given: tuple[str, ...]) -> list[tuple[str, str]]:
    """The default headers and those of `--header`, in the order in which they are sent."""
    headers = dict(_HEADERS)
    more: list[tuple[str, str]] = []
    for text in given:
        name, colon, value = text.partition(":")
        if not colon or not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name):
            # Not shown, because it may contain a secret.
            raise WrongUsage("the value of --header is not a header; write it as 'NAME: VALUE'")
        if name.lower() in _OWN:
            raise WrongUsage(f"--header cannot replace {name}, which the command sets itself")
        headers.pop(name.lower(), None)
        more.append((name, value.strip()))
    return [*headers.items(), *more]
