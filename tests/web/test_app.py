"""The application while it starts: the signals of a server may come before its services exist."""

from __future__ import annotations

from pathlib import Path

import trio

from llm_proxy.config import Settings
from llm_proxy.logging.log import Log
from llm_proxy.logging.redaction import Redactor
from llm_proxy.logging.sink import Sink
from llm_proxy.metrics import MetricStore
from llm_proxy.server.asgi import Lifespan
from llm_proxy.web.app import LLMProxy

ENVIRONMENT = {"MANAGEMENT_TOKEN": "a-management-token-of-a-test", "ALLOW_PLAINTEXT_API_KEYS": "true"}


async def test_a_stop_before_the_startup_is_reported_after_it(tmp_path: Path) -> None:
    environment = ENVIRONMENT | {"DATABASE_PATH": str(tmp_path / "ledger.db")}
    settings = Settings.load(environment, {}, None, serving=True)
    errors: list[BaseException] = []
    draining: list[bool] = []

    async def serve() -> None:
        draining.append(app.services.readiness.draining)

    with Log(Sink(tmp_path / "log"), Redactor(), "info", "json") as request_log:
        app = LLMProxy(settings, request_log, MetricStore())
        app.report_draining()
        assert not app.started.is_set()
        await Lifespan(app, trio.Event(), errors.append, 60.0).around(serve)
    assert (draining, errors) == ([True], [])
