"""What helm.md and the examples have their readers type."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from db import dsn
from llm_proxy.config import Settings
from tests.docs.blocks import block
from tests.docs.prompt import recorded
from tests.harness.server import ROOT
from tests.helm.chart import CHART, EXAMPLES, environment, server
from tests.helm.cluster import Cluster

PAGE = ROOT / "docs" / "deployment" / "helm.md"
#: What nobody can have here: a file of Amazon's, and an account of Google's.
ELSEWHERE = ("curl", "gcloud")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkout, as far as the chart is concerned, with the file that is fetched from elsewhere."""
    (tmp_path / "helm").symlink_to(ROOT / "helm")
    (tmp_path / "global-bundle.pem").write_text("authorities")
    return tmp_path


def follow(cluster: Cluster, script: str, folder: Path) -> None:
    """Type a script, and have the cluster do what is asked of it."""
    calls = [call for call in recorded(script, folder, ["kubectl", "helm", *ELSEWHERE]) if call.name not in ELSEWHERE]
    assert calls
    for call in calls:
        cluster.do(call)


def test_commands_of_the_helm_page_work(folder: Path) -> None:
    cluster = Cluster()
    follow(cluster, block(PAGE, "install"), folder)
    (folder / "my-values.yaml").write_text((CHART / "examples" / "sqlite.yaml").read_text())
    follow(cluster, block(PAGE, "upgrade"), folder)
    follow(cluster, block(PAGE, "rollback"), folder)
    assert [len(revisions) for revisions in cluster.releases.values()] == [3]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_commands_of_an_example_create_the_secrets_of_its_pods(example: Path, folder: Path) -> None:
    """And the secrets are ones that the program takes."""
    comments = "\n".join(re.findall(r"^#   (.*)$", example.read_text(), re.MULTILINE))
    cluster = Cluster()
    follow(cluster, comments, folder)
    ((objects,),) = cluster.releases.values()
    given = {name: value for made in cluster.made.values() for name, value in made.items()}
    secrets = {name: given[name] for name in ("MANAGEMENT_TOKEN", "ENCRYPTION_KEY")}
    assert Settings.load(secrets, serving=True).encryption_key
    driver = environment(server(objects))["DB_DRIVER"]
    if driver != "sqlite":
        url = given.get("DATABASE_URL") or given["database-url"]
        assert dsn.parse(driver, url, "").database == "llmproxy"


@pytest.mark.parametrize("wrong", ["ENCRYPTION_KEI", "generic other"])
def test_a_missing_secret_is_detected(wrong: str, folder: Path) -> None:
    script = block(PAGE, "install").replace({"g": "generic llm-proxy", "E": "ENCRYPTION_KEY"}[wrong[0]], wrong)
    with pytest.raises(AssertionError, match="secret llm-proxy"):
        follow(Cluster(), script, folder)
