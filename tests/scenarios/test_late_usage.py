"""A server that asks the provider for usage that comes later."""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, ClassVar

import httpx
import yaml

from tests.databases.kinds import Kind
from tests.databases.scratch import Databases
from tests.harness.deployment import UPSTREAM_KEY
from tests.harness.server import running_server
from tests.harness.vendor import served
from tests.scenarios.aftermath import wait_for

RESPONSE = {"id": "resp_1", "object": "response", "model": "gpt-5.4", "status": "queued", "background": True}
DONE = {**RESPONSE, "status": "completed", "usage": {"input_tokens": 1000, "output_tokens": 200, "total_tokens": 1200}}


class Vendor(BaseHTTPRequestHandler):
    """OpenAI's responses API: a response in the background is done when it is asked for the second time."""

    protocol_version = "HTTP/1.1"
    asked: ClassVar[list[str]] = []

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self._answer(RESPONSE)

    def do_GET(self) -> None:
        self.asked.append(f"{self.headers['authorization']} {self.path}")
        self._answer(RESPONSE if len(self.asked) < 2 else DONE)

    def _answer(self, content: dict[str, Any]) -> None:
        text = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: Any) -> None:
        pass


def test_a_response_that_no_client_asks_for_is_booked_once(databases: Databases, tmp_path: Path) -> None:
    providers = tmp_path / "providers.yaml"
    Vendor.asked.clear()
    with served(Vendor) as url, databases.migrated(Kind.SQLITE) as scratch:
        providers.write_text(yaml.safe_dump({"apis": {"openai": {"base_url": url}}}))
        settings = {"API_CONFIG_PATH": str(providers), "LATE_USAGE_POLL": "200ms"}
        with running_server(scratch.env, settings) as server:
            project = server.manage("POST", "/projects", {"name": "one", "api_key": UPSTREAM_KEY})["id"]
            token = server.manage("POST", "/tokens", {"project_id": project})
            answer = httpx.post(
                f"{server.url}/v1/responses",
                json={"model": "gpt-5.4", "input": "Hello", "background": True},
                headers={"Authorization": f"Bearer {token['token']}"},
            )
            assert answer.json() == RESPONSE

            def late() -> list[dict[str, Any]] | None:
                rows = server.manage("GET", "/requests")["data"]
                return [row for row in rows if row["kind"] == "late"] or None

            (row,) = wait_for(late, 20, lambda: f"asked: {Vendor.asked}")
            origin = answer.headers["x-llm-proxy-request-id"]
            assert (row["origin_id"], row["token_id"], row["model"]) == (origin, token["id"], "gpt-5.4")
            assert (row["input_tokens"], row["output_tokens"]) == (1000, 200)
            assert server.manage("GET", "/usage/unbooked")["data"] == []
            assert Vendor.asked == [f"Bearer {UPSTREAM_KEY} /v1/responses/resp_1"] * 2
            assert UPSTREAM_KEY not in server.output
