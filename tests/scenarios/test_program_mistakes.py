"""A mistake in the program itself: the worker ends and says why, instead of writing something wrong."""

from __future__ import annotations

from pathlib import Path

import trio

from benchmarks.processes import Upstream
from db import dsn
from db.database import opened
from db.options import Options
from db.queries import ledger
from tests.harness.deployment import UPSTREAM_KEY, Deployment, provider_settings
from tests.harness.server import ROOT, running_server

#: Python runs this at its start. Admitting fails as it would by a mistake, once the file `mistaken` is there.
MISTAKE = """
import pathlib
from db.queries import ledger

reserve = ledger.reserve

def mistaken(*arguments):
    if pathlib.Path(__file__).with_name("mistaken").exists():
        raise AttributeError("a mistake in the program")
    reserve(*arguments)

ledger.reserve = mistaken
"""


def test_a_bug_in_the_ledger_ends_the_process_with_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(MISTAKE)
    path = tmp_path / "llm-proxy.db"
    with Upstream.start("--key", UPSTREAM_KEY) as upstream:
        env = {"DB_DRIVER": "sqlite", "DATABASE_PATH": str(path), "PYTHONPATH": f"{tmp_path}:{ROOT}"}
        with running_server(env, provider_settings(upstream), program=("llm_proxy", "server")) as server:
            deployment = Deployment(server, upstream)
            secret = deployment.new_secret()

            async def use() -> list[int]:
                served = (await deployment.chat(secret)).status
                (tmp_path / "mistaken").touch()
                return [served, (await deployment.chat(secret)).status]

            assert trio.run(use) == [200, 503]
            assert server.wait() == 1
            assert "AttributeError: a mistake in the program" in server.output
            assert "is lost" not in server.output
    with opened(dsn.parse("sqlite", None, str(path)), Options()) as database:
        assert database.read_now(ledger.verify) == []
