"""What cannot work is refused before anything is installed, each with a sentence that says what to do."""

from __future__ import annotations

import re

import pytest

from tests.helm.chart import Refused, Values, merged, render
from tests.helm.reference import refusals
from tests.helm.test_chart_values import DATABASES

REFUSED = refusals()
POSTGRES = DATABASES["postgres"]


def values_of(name: str) -> Values:
    case = REFUSED[name]
    return merged(DATABASES[case["over"]] if "over" in case else {}, case["values"])


def sentences(error: pytest.ExceptionInfo[Refused]) -> list[str]:
    """What the chart said, one by one."""
    said = str(error.value)
    assert "These values cannot work:" in said
    return re.findall(r"^- (.*)$", said, re.MULTILINE)


@pytest.mark.parametrize("name", REFUSED)
def test_values_that_cannot_work_are_rejected_with_advice(name: str) -> None:
    with pytest.raises(Refused) as error:
        render(values_of(name))
    assert REFUSED[name]["sentence"] in sentences(error)
    assert "canary" not in str(error.value)


def test_all_errors_are_reported_at_once() -> None:
    wrong = ["sqlite, pods", "sqlite, workers", "pods without a certificate", "budget that lets none go"]
    with pytest.raises(Refused) as error:
        render(merged(*map(values_of, wrong)))
    assert sorted(sentences(error)) == sorted(REFUSED[name]["sentence"] for name in wrong)


def test_a_job_beside_sidecars_that_never_end_is_refused() -> None:
    sidecar = {"name": "proxy", "image": "proxy:1", "resources": {"limits": {"cpu": "1"}}}
    values = merged(POSTGRES, {"migrations": {"mode": "job"}, "sidecars": [sidecar]})
    with pytest.raises(Refused) as error:
        render(values, kubernetes="1.28")
    (sentence,) = sentences(error)
    assert sentence.startswith("migrations.mode job: before Kubernetes 1.29 sidecars never end")
    assert render(values, kubernetes="1.29")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"replica": 2}, "Additional property replica is not allowed"),
        ({"config": {"LOG_LEVLE": "debug"}}, "Additional property LOG_LEVLE is not allowed"),
        ({"database": {"driver": "oracle"}}, "database.driver"),
        ({"secrets": {"existingSecret": "a\nkind: Pod"}}, "secrets.existingSecret"),
        ({"securityContext": {"readOnlyRootFilesystem": False}}, "securityContext.readOnlyRootFilesystem"),
        ({"securityContext": {"runAsUser": 0}}, "securityContext.runAsUser"),
        ({"securityContext": {"privileged": True}}, "securityContext.privileged"),
        ({"podSecurityContext": {"runAsNonRoot": False}}, "podSecurityContext.runAsNonRoot"),
        ({"podSecurityContext": {"runAsUser": 0}}, "podSecurityContext.runAsUser"),
        ({"resources": {"limits": None}}, "limits is required"),
        ({"sqlite": {"persistence": {"accessMode": "ReadWriteMany"}}}, "sqlite.persistence.accessMode"),
        ({"shutdown": {"marginSeconds": 1}}, "shutdown.marginSeconds"),
        ({"postgresql": {"password": 12345678}}, "postgresql.password"),
    ],
    ids=lambda part: part if isinstance(part, str) else "",
)
def test_unknown_values_are_rejected_by_the_schema(values: Values, said: str) -> None:
    with pytest.raises(Refused, match=re.escape(said)):
        render(values)
