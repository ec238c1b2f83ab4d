"""The client of the management API: synchronous, with errors for the person at the terminal."""

from __future__ import annotations

import functools
import ipaddress
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote, urlsplit

import click
import httpx

from llm_proxy import __version__
from llm_proxy.cli.failures import CannotConnect, CommandFailed, NotAuthorised, WrongUsage
from llm_proxy.cli.options import BASE_URL, config_option, json_option, load_setting
from llm_proxy.config import ListenAddress
from llm_proxy.net.tls import client_context
from llm_proxy.secrets import management_token as token_file

#: Seconds to wait for a server's response.
_TIMEOUT = 30.0

#: Entries of a page: the most that the API allows.
_PAGE = 500

#: A header of every response of `/manage`, which other servers do not send.
_MARK = "X-LLM-Proxy-Request-ID"

#: A field in an error of the API, and the options whose names differ from their fields.
_FIELD = re.compile(r"(?<!label )'([a-z][a-z_]*)'")
_OPTIONS = {"credentials": "--credential", "duration_minutes": "--duration", "labels": "--label"}
#: How an error about the document of a credential begins; the other names in it are fields of the document.
_DOCUMENT = "'api_key': "

#: What to do about some errors of the API.
_REMEDIES = {
    "project_inactive": "the project is inactive; activate it with 'llm-proxy manage project activate'",
    "token_revoked": "the token is revoked; make a new one with 'llm-proxy manage token generate'",
}
#: What `manage … list` shows, as the codes of errors name it.
_LISTED = ("project", "credential", "token", "limit", "request")


class ManagementClient:
    """Calls `/manage` of one server. Use it as a context manager. Every method raises `CommandFailed`."""

    def __init__(self, base_url: str, token: str) -> None:
        self._base_url = base_url
        self._http = httpx.Client(
            headers={"Authorization": f"Bearer {token}", "User-Agent": f"llm-proxy/{__version__}"},
            timeout=_TIMEOUT,
            # As for providers: the system's roots, or those of SSL_CERT_FILE.
            verify=client_context() if base_url.startswith("https:") else True,
            # The environment's outbound proxy cannot reach a server on this machine.
            trust_env=not _is_loopback(base_url),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def get(self, path: str, **params: object) -> Any:
        """GET; parameters that are None are left out."""
        query = {name: str(value) for name, value in params.items() if value is not None}
        return self._call("GET", path, params=query)

    def list(self, path: str, **params: object) -> Iterator[dict[str, Any]]:
        """GET all pages of a list."""
        cursor: str | None = None
        while True:
            page = self.get(path, **params, limit=_PAGE, cursor=cursor)
            yield from page["data"]
            cursor = page["next_cursor"]
            if cursor is None:
                return

    def post(self, path: str, body: Mapping[str, object] | None = None) -> Any:
        return self._call("POST", path, json=body or {})

    def patch(self, path: str, body: Mapping[str, object]) -> Any:
        return self._call("PATCH", path, json=body)

    def delete(self, path: str) -> Any:
        return self._call("DELETE", path)

    def csv(self, path: str, **params: object) -> Iterator[str]:
        """GET a whole list as CSV, a piece at a time."""
        query = {name: str(value) for name, value in params.items() if value is not None}
        with (
            self._translated_errors(),
            self._http.stream(
                "GET", f"{self._base_url}{path}", params=query, headers={"Accept": "text/csv"}
            ) as response,
        ):
            if not response.is_success:
                response.read()
            self._check(response)
            try:
                yield from response.iter_text()
            except httpx.TransportError:
                raise CannotConnect(
                    f"{self._base_url} ended its response early: the list is not complete; run the command again"
                ) from None

    def _call(self, method: str, path: str, **content: Any) -> Any:
        with self._translated_errors():
            response = self._http.request(method, f"{self._base_url}{path}", **content)
        self._check(response)
        return response.json() if response.content else None

    @contextmanager
    def _translated_errors(self) -> Iterator[None]:
        try:
            yield
        except httpx.TimeoutException:
            raise CannotConnect(f"{self._base_url} did not answer within {_TIMEOUT:.0f} s") from None
        except httpx.TransportError as error:
            raise CannotConnect(self._unreachable(error)) from None

    def _check(self, response: httpx.Response) -> None:
        if not response.is_success:
            raise self._refused(response)
        if _MARK not in response.headers:
            raise CommandFailed(
                f"{self._base_url} does not answer like an llm-proxy server; check --manage-api-base-url"
            )

    def _unreachable(self, error: httpx.TransportError) -> str:
        reason = re.sub(r"^\[Errno -?\d+\] ", "", str(error)).rstrip(".") or type(error).__name__
        reason = re.sub(r"^\[SSL[^\]]*\] (.*) \(_ssl\.c:\d+\)$", r"TLS: \1", reason)
        return f"cannot connect to {self._base_url} ({reason}); is the server running, and --manage-api-base-url right?"

    def _refused(self, response: httpx.Response) -> CommandFailed:
        if _MARK not in response.headers and not response.is_server_error:
            # A 5xx may come from a reverse proxy before the right server.
            answer = f"answered {response.status_code} and is not an llm-proxy server"
            return CommandFailed(f"{self._base_url} {answer}; check --manage-api-base-url or LLM_PROXY_URL")
        if response.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
            message = f"the management token is wrong for {self._base_url}; set MANAGEMENT_TOKEN to that server's token"
            return NotAuthorised(message)
        code, message = _error(response)
        if code == "not_found":
            return CommandFailed(f"{self._base_url} does not know this ID; check the ID and --manage-api-base-url")
        kind = code.removesuffix("_not_found")
        if kind in _LISTED:
            return CommandFailed(f"{message}; 'llm-proxy manage {kind} list' shows those that exist")
        return CommandFailed(
            _REMEDIES.get(code) or message or f"{self._base_url} answered with HTTP status {response.status_code}"
        )


def _error(response: httpx.Response) -> tuple[str, str]:
    """The code and the message of an error; both empty if the response is not an error of this API."""
    try:
        body = response.json()
    except json.JSONDecodeError:
        body = None
    if not isinstance(body, dict):
        return "", ""
    error = body.get("error")
    if isinstance(error, dict):
        # The data plane's form, for requests that do not reach the API.
        return str(error.get("code", "")), str(error.get("message", "")).rstrip(".")
    code, description = str(body.get("code", "")), str(body.get("description", ""))
    if code in ("invalid_body", "invalid_query"):
        message = _FIELD.sub(
            lambda field: _OPTIONS.get(field[1]) or f"--{field[1].replace('_', '-')}",
            description,
            count=1 if description.startswith(_DOCUMENT) else 0,
        )
    else:
        message = ": ".join(text for text in (str(error or ""), description) if text)
    return code, message.rstrip(".")


def path(*segments: str) -> str:
    """A path of the management API; each segment is escaped."""
    return "/manage/" + "/".join(quote(segment, safe="") for segment in segments)


def with_client(function: Callable[..., None], *, prints_json: bool = True) -> Callable[..., None]:
    """Add the options that name the server and its token, and `--json`; the command gets a client as first argument."""

    @functools.wraps(function)
    def command(
        *, manage_api_base_url: str | None, management_token: str | None, config: Path | None, **parameters: Any
    ) -> None:
        url = find_server(manage_api_base_url, config)
        with ManagementClient(url, _find_token(url, management_token, config)) as client:
            function(client, **parameters)

    url = click.option(
        "--manage-api-base-url",
        type=BASE_URL,
        help="Base URL of the server.  [LLM_PROXY_URL; default: this machine, at LISTEN_ADDR]",
    )
    token = click.option(
        "--management-token", metavar="TOKEN", help="Management token of the server.  [MANAGEMENT_TOKEN]"
    )
    options = url(token(config_option(command)))
    return json_option(options) if prints_json else options


def find_server(url: str | None, config: Path | None) -> str:
    """The base URL of the server: the given one, `LLM_PROXY_URL`, or a server on this machine at `LISTEN_ADDR`."""
    configured = load_setting("LLM_PROXY_URL", config, LLM_PROXY_URL=url)
    if configured is not None:
        if str(configured).endswith(("/v1", "/manage")):
            base, _, end = str(configured).rpartition("/")
            raise WrongUsage(f"the URL must not end in /{end}: use {base}")
        return str(configured)
    address: ListenAddress = load_setting("LISTEN_ADDR", config)
    host = "127.0.0.1" if address.host in ("", "0.0.0.0", "::") else address.host  # noqa: S104 - compared, not bound
    scheme = "https" if load_setting("ENABLE_TLS", config) else "http"
    return f"{scheme}://{ListenAddress(host, address.port)}"


def _find_token(base_url: str, token: str | None, config: Path | None) -> str:
    configured = load_setting("MANAGEMENT_TOKEN", config, MANAGEMENT_TOKEN=token)
    if configured is not None:
        return str(configured)
    # The token in the file is for the server on this machine, and must not be sent to another one.
    if _is_loopback(base_url):
        file = token_file.path_beside(load_setting("DATABASE_PATH", config))
        if file.exists():
            return token_file.read(file)
    raise WrongUsage("the management token is not set; set MANAGEMENT_TOKEN or --management-token to the server's")


def _is_loopback(base_url: str) -> bool:
    host = urlsplit(base_url).hostname or ""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
