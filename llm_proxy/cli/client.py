"""The management API's client: synchronous, and with every failure in words."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Self

import httpx

from llm_proxy.cli.failures import CannotConnect, Failure, NotAuthorised
from llm_proxy.cli.management_token import is_loopback
from llm_proxy.version import VERSION

#: Seconds until a server that does not answer is given up.
_TIMEOUT = 30.0

#: The header that every answer of `/manage` has, and no other server's.
_MARK = "X-LLM-Proxy-Request-ID"

#: A field of the API as its errors name it, and the options that are not called as their fields are.
_FIELD = re.compile(r"'([a-z_]+)'")
_OPTIONS = {"duration_minutes": "--duration"}

#: What to do about some of the API's problems, for people who do not write requests.
_REMEDIES = {
    "project_inactive": "the project is deactivated; 'llm-proxy manage project activate' takes that back",
    "token_revoked": "the token is revoked; 'llm-proxy manage token generate' makes a new one",
}


class ManagementClient:
    """Talks to one server's `/manage`. Use it as a context manager.

    Every method raises `Failure`: exit code 2 where the server cannot be reached, 3 where it refuses the token, 1
    where it refuses what was asked.
    """

    def __init__(self, base_url: str, token: str) -> None:
        """Take the server's base URL without a slash at its end, and the management token."""
        self._base_url = base_url
        self._http = httpx.Client(
            headers={"Authorization": f"Bearer {token}", "User-Agent": f"llm-proxy/{VERSION}"},
            timeout=_TIMEOUT,
            # A proxy of the environment is for the world outside, not for a server on this machine.
            trust_env=not is_loopback(base_url),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def get(self, path: str, **params: object) -> Any:
        """Fetch one thing, or one page."""
        return self._call("GET", path, params=params)

    def post(self, path: str, body: Mapping[str, object] | None = None) -> Any:
        """Make something, or have something done."""
        return self._call("POST", path, body=body or {})

    def patch(self, path: str, body: Mapping[str, object]) -> Any:
        """Change some fields of something."""
        return self._call("PATCH", path, body=body)

    def delete(self, path: str) -> Any:
        """Take something away."""
        return self._call("DELETE", path)

    def _call(
        self,
        method: str,
        path: str,
        params: Mapping[str, object] | None = None,
        body: Mapping[str, object] | None = None,
    ) -> Any:
        query = {name: str(value) for name, value in (params or {}).items() if value is not None}
        try:
            response = self._http.request(method, f"{self._base_url}{path}", params=query, json=body)
        except httpx.TimeoutException:
            raise CannotConnect(f"{self._base_url} did not answer within {_TIMEOUT:.0f} s") from None
        except httpx.TransportError as error:
            raise CannotConnect(self._unreachable(error)) from None
        if response.is_success:
            return self._json(response)
        raise self._refused(response)

    def _json(self, response: httpx.Response) -> Any:
        if _MARK not in response.headers:
            raise Failure(f"{self._base_url} does not answer like an llm-proxy server; check --manage-api-base-url")
        return response.json() if response.content else None

    def _unreachable(self, error: httpx.TransportError) -> str:
        reason = re.sub(r"^\[Errno -?\d+\] ", "", str(error)).rstrip(".") or type(error).__name__
        reason = re.sub(r"^\[SSL[^\]]*\] (.*) \(_ssl\.c:\d+\)$", r"TLS: \1", reason)
        return f"cannot connect to {self._base_url} ({reason}); is the server running, and --manage-api-base-url right?"

    def _refused(self, response: httpx.Response) -> Failure:
        if _MARK not in response.headers and not response.is_server_error:
            # A 5xx may be a reverse proxy's that stands in front of the right server.
            answer = f"answered {response.status_code} and is not an llm-proxy server"
            return Failure(f"{self._base_url} {answer}; check --manage-api-base-url or LLM_PROXY_URL")
        if response.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
            message = f"the management token is wrong for {self._base_url}; set MANAGEMENT_TOKEN to that server's token"
            return NotAuthorised(message)
        code, words = _problem(response)
        if code == "not_found":
            return Failure(f"{self._base_url} knows nothing of that; check --manage-api-base-url, and the ID")
        return Failure(
            _REMEDIES.get(code)
            or ": ".join(words).rstrip(".")
            or f"{self._base_url} answered with HTTP status {response.status_code}"
        )


def _problem(response: httpx.Response) -> tuple[str, list[str]]:
    """The code of what the server refuses, and its words; nothing where the answer is not of such a server."""
    try:
        body = response.json()
    except json.JSONDecodeError:
        return "", []
    if not isinstance(body, dict):
        return "", []
    error = body.get("error")
    if isinstance(error, dict):
        # So speaks the server itself, of requests that never get to the API.
        return str(error.get("code", "")), [str(error.get("message", ""))]
    code = str(body.get("code", ""))
    # What is wrong with a body or a query is all in the description.
    if code in ("invalid_body", "invalid_query"):
        return code, [_FIELD.sub(_option, str(body.get("description", "")))]
    return code, [str(body[key]) for key in ("error", "description") if body.get(key)]


def _option(field: re.Match[str]) -> str:
    """Call a field of the API by the option that sets it."""
    return _OPTIONS.get(field[1]) or "--" + field[1].replace("_", "-")
