"""What every object of the chart has to be like, whatever the values: for Kubernetes' schemas, and for us."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import kubernetes_validate

from llm_proxy.config.declaration import Settings
from llm_proxy.config.sources import declared
from tests.helm.chart import Manifest

SECRETS = frozenset(name for name, field in declared(Settings).items() if field.secret)

#: Kinds of the Prometheus Operator, whose schemas Kubernetes does not have, and what of their `spec` the chart uses.
#: https://prometheus-operator.dev/docs/api-reference/api/
_OPERATOR = {
    "ServiceMonitor": {"selector", "endpoints"},
    "PrometheusRule": {"groups"},
}
_ENDPOINT = {"port", "path", "interval", "scrapeTimeout", "scheme", "tlsConfig"}
_RULE = {"alert", "record", "expr", "for", "keep_firing_for", "labels", "annotations"}


def check_schema(manifest: Manifest, version: str) -> None:
    """Hold an object to the schema of its kind in a version of Kubernetes; unknown fields are errors."""
    if manifest["kind"] in _OPERATOR:
        _check_operator(manifest)
    else:
        kubernetes_validate.validate(manifest, version, strict=True)


def _check_operator(manifest: Manifest) -> None:
    kind, spec = manifest["kind"], manifest["spec"]
    assert manifest["apiVersion"] == "monitoring.coreos.com/v1"
    assert set(manifest) == {"apiVersion", "kind", "metadata", "spec"}
    assert set(spec) == _OPERATOR[kind]
    if kind == "ServiceMonitor":
        assert set(spec["selector"]) == {"matchLabels"}
        assert all({"port", "path"} <= set(endpoint) <= _ENDPOINT for endpoint in spec["endpoints"])
    else:
        for group in spec["groups"]:
            assert {"name", "rules"} <= set(group) <= {"name", "rules", "interval", "limit", "labels"}
            assert all({"expr"} <= set(rule) <= _RULE for rule in group["rules"])


def pods_of(manifest: Manifest) -> Iterator[Manifest]:
    """The specification of the pods that an object makes."""
    if manifest["kind"] == "Pod":
        yield manifest["spec"]
    elif manifest["kind"] in {"Deployment", "StatefulSet", "Job"}:
        yield manifest["spec"]["template"]["spec"]


def containers_of(pod: Manifest) -> list[Manifest]:
    """All its containers, those that come first too."""
    return [*pod.get("initContainers", []), *pod["containers"]]


def check_policy(manifest: Manifest) -> None:
    """Hold an object to what Kubernetes calls restricted, and to what we ask beyond it.

    https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted
    """
    kind = manifest["kind"]
    assert manifest["metadata"]["labels"]["app.kubernetes.io/instance"] == "llm-proxy"
    assert manifest["metadata"]["namespace"] == "gateway"
    if kind == "ServiceAccount":
        assert manifest["automountServiceAccountToken"] is False
    if kind == "StatefulSet":
        assert manifest["spec"]["replicas"] == 1
    for pod in pods_of(manifest):
        _check_pod(pod)
        for container in containers_of(pod):
            _check_container(container)
        if kind in {"Deployment", "StatefulSet"}:
            assert all(
                {"readinessProbe", "livenessProbe", "startupProbe"} <= set(each) for each in pod["containers"][:1]
            )


def _check_pod(pod: Manifest) -> None:
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
    security = pod["securityContext"]
    assert security["runAsNonRoot"] is True
    assert security.get("runAsUser") != 0
    assert security["seccompProfile"]["type"] == "RuntimeDefault"
    assert all("hostPath" not in volume for volume in pod.get("volumes", []))


def _check_container(container: Manifest) -> None:
    security = container["securityContext"]
    assert security["readOnlyRootFilesystem"] is True
    assert security["allowPrivilegeEscalation"] is False
    assert security["capabilities"]["drop"] == ["ALL"]
    assert not security.get("privileged")
    for share in ("requests", "limits"):
        assert set(container["resources"][share]) >= {"cpu", "memory"}
    for variable in container.get("env", []):
        assert variable["name"] not in SECRETS
    if container.get("command", [])[:2] == ["python", "-c"]:
        ast.parse(container["command"][2])
