"""A scripted token endpoint on loopback, and the credentials that name it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from attrs import define, field
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from tests.gateway.upstream.stage import Asked, Peer, stage

#: Secrets that no message and no log may contain.
CLIENT_SECRET = "canary-client-secret"
JWT = "Y2FuYXJ5.YXNzZXJ0aW9u.c2lnbmF0dXJl"
TOKEN = "canary-access-token"
CANARIES = (CLIENT_SECRET, JWT, TOKEN)


@define
class Endpoint:
    """Answers each request with `status` and `body`, in JSON."""

    url: str = ""
    status: int = 200
    body: Any = field(factory=lambda: {"access_token": TOKEN, "token_type": "Bearer", "expires_in": 3600})
    asked: list[Asked] = field(factory=list)

    async def handle(self, peer: Peer) -> None:
        while asked := await peer.request():
            self.asked.append(asked)
            body = self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()
            head = b"HTTP/1.1 %d X\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
            await peer.send(head % (self.status, len(body)) + body)

    def form(self) -> dict[str, str]:
        """The form of the only request so far."""
        (asked,) = self.asked
        assert asked.values(b"content-type") == [b"application/x-www-form-urlencoded"]
        return dict(parse_qsl(asked.body.decode(), strict_parsing=True))

    def json(self) -> Any:
        (asked,) = self.asked
        assert asked.values(b"content-type") == [b"application/json"]
        return json.loads(asked.body)


@asynccontextmanager
async def token_endpoint() -> AsyncIterator[Endpoint]:
    endpoint = Endpoint()
    async with stage(endpoint.handle) as running:
        endpoint.url = f"http://{running.origin}"
        yield endpoint


def private_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def pem(key: rsa.RSAPrivateKey) -> str:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def token_file(folder: Path, token: str = JWT) -> Path:
    path = folder / "token"
    path.write_text(f"{token}\n")
    return path


def _azure_ad(url: str, folder: Path) -> dict[str, Any]:
    return {"tenant_id": "contoso", "client_id": "app-1", "client_secret": CLIENT_SECRET, "authority": url}


def _openai(url: str, folder: Path) -> dict[str, Any]:
    return {
        "identity_provider_id": "idp-1",
        "service_account_id": "sa-1",
        "token_file": str(token_file(folder)),
        "token_url": f"{url}/oauth/token",
    }


def _anthropic(url: str, folder: Path) -> dict[str, Any]:
    return {
        "federation_rule_id": "fdrl_1",
        "organization_id": "00000000-0000-4000-8000-000000000000",
        "service_account_id": "svac_1",
        "token_file": str(token_file(folder)),
        "token_url": f"{url}/v1/oauth/token",
    }


def _google(url: str, folder: Path) -> dict[str, Any]:
    return {
        "type": "service_account",
        "project_id": "project-1",
        "private_key_id": "key-1",
        "private_key": pem(private_key()),
        "client_email": "proxy@project-1.iam.gserviceaccount.com",
        "token_uri": f"{url}/token",
    }


#: A valid document of each kind that has a token endpoint, from the endpoint's URL and a folder for files.
DOCUMENTS: dict[str, Callable[[str, Path], dict[str, Any]]] = {
    "azure-ad": _azure_ad,
    "openai-wif": _openai,
    "anthropic-wif": _anthropic,
    "google": _google,
}
