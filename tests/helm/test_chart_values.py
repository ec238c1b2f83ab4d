"""Many combinations of values, each held to schemas and policy; and what single values do."""

from __future__ import annotations

from typing import Any

import pytest

from tests.helm.chart import (
    KUBERNETES,
    NEWEST,
    OLDEST,
    Refused,
    Values,
    deployment,
    environment,
    merged,
    of_kind,
    render,
    server,
)
from tests.helm.policy import check_policy, check_schema

EXISTING = {"secrets": {"existingSecret": "llm-proxy"}}
PASSWORD = "a-Password_1"

DATABASES: dict[str, Values] = {
    "sqlite": {},
    "sqlite, secrets": EXISTING,
    "sqlite, claim": {"sqlite": {"persistence": {"existingClaim": "mine"}}},
    "sqlite, no volume": {"sqlite": {"persistence": {"enabled": False}}},
    "postgres": merged(EXISTING, {"database": {"driver": "postgres"}}),
    "postgres, created": {
        "database": {"driver": "postgres"},
        "secrets": {
            "create": True,
            "managementToken": "0123456789abcdef0123456789abcdef",
            "encryptionKey": "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=",
            "databaseUrl": "postgres://llmproxy:x@db:5432/llmproxy?sslmode=verify-full",
        },
    },
    "postgres, verified": merged(
        EXISTING,
        {
            "database": {
                "driver": "postgres",
                "existingSecret": "database",
                "key": "url",
                "tls": {"ca": {"secret": "authorities"}, "clientCertificateSecret": "client"},
            }
        },
    ),
    "postgres, inside": merged(
        EXISTING, {"database": {"driver": "postgres"}, "postgresql": {"enabled": True, "password": PASSWORD}}
    ),
    "mysql": merged(EXISTING, {"database": {"driver": "mysql", "tls": {"ca": {"configMap": "authorities"}}}}),
    "mysql, plain keys": {
        "database": {"driver": "mysql"},
        "secrets": {"existingSecret": "llm-proxy", "keys": {"encryptionKey": ""}, "allowPlaintextApiKeys": True},
    },
    "mysql, inside": merged(
        EXISTING,
        {
            "database": {"driver": "mysql"},
            "mysql": {
                "enabled": True,
                "password": PASSWORD,
                "rootPassword": PASSWORD,
                "persistence": {"enabled": False},
            },
        },
    ),
}

FEATURES: dict[str, Values] = {
    "nothing else": {},
    "network": {
        "networkPolicy": {"enabled": True, "ingressFrom": [{"podSelector": {}}], "databaseCidrs": ["10.0.0.0/8"]},
        "ingress": {"enabled": True, "className": "nginx", "hosts": ["a.example.com", "*.example.org"]},
        "service": {"type": "LoadBalancer", "port": 443, "annotations": {"internal": "true"}},
    },
    "https": {
        "tls": {"enabled": True, "existingSecret": "pods"},
        "ingress": {"enabled": True, "hosts": ["a.example.com"], "tls": {"enabled": True, "secretName": "a"}},
        "serviceMonitor": {"enabled": True, "labels": {"release": "stack"}},
    },
    "settings": {
        "config": {"LOG_LEVEL": "debug", "MAX_REQUEST_SIZE": 200000000, "CORS_ALLOWED_ORIGINS": "*"},
        "extraEnv": [
            {"name": "HTTPS_PROXY", "value": "http://proxy:3128"},
            {"name": "PROXY_TOKEN", "valueFrom": {"secretKeyRef": {"name": "proxy", "key": "token"}}},
        ],
        "providers": {"config": {"default_api": "openai", "apis": {"openai": {"base_url": "https://api.openai.com"}}}},
        "prices": {"config": {"prices": {"openai": {"gpt-5.4*": {"input": 2, "output": 12}}}}},
        "identityTokens": [{"name": "anthropic", "audience": "https://api.anthropic.com", "expirationSeconds": 600}],
        "dashboard": {"enabled": True},
        "prometheusRule": {"enabled": True},
    },
    "placement": {
        "nodeSelector": {"disk": "ssd"},
        "tolerations": [{"key": "gateway", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}},
        "topologySpreadConstraints": [
            {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {}}
        ],
        "priorityClassName": "high",
        "imagePullSecrets": [{"name": "registry"}],
        "image": {"digest": "sha256:" + "0" * 64, "pullPolicy": "Always"},
        "serviceAccount": {"create": False},
        "podSecurityContext": {"runAsUser": None, "runAsGroup": None, "fsGroup": None},
        "podLabels": {"team": "a"},
        "podAnnotations": {"note": "b"},
        "fullnameOverride": "gateway",
    },
}

FLEET: dict[str, Values] = {
    "pods": {"replicas": 3, "podDisruptionBudget": {"minAvailable": "50%"}, "rollout": {"maxSurge": "50%"}},
    "autoscaled": {
        "autoscaling": {"enabled": True, "maxReplicas": 4, "targetMemoryUtilizationPercentage": 80},
        "podDisruptionBudget": {"minAvailable": 1},
    },
    "workers": {"workers": 2, "replicas": 2, "shutdown": {"preStopSeconds": 0, "graceSeconds": 600}},
    "migrated by a job": {"migrations": {"mode": "job"}},
}


def combinations() -> list[Any]:
    """Each database with each feature, and those that are servers with each kind of fleet too."""
    found = []
    for place, (database, values) in enumerate(DATABASES.items()):
        for feature, further in FEATURES.items():
            found.append(pytest.param(merged(values, further), id=f"{database}, {feature}"))
        for shift, (size, fleet) in enumerate(FLEET.items()):
            by_job = size == "migrated by a job"
            if database.startswith("sqlite") or (by_job and database.endswith(("inside", "created"))):
                continue
            feature = list(FEATURES)[(place + shift) % len(FEATURES)]
            found.append(pytest.param(merged(values, FEATURES[feature], fleet), id=f"{database}, {size}, {feature}"))
    return found


def test_matrix_of_values_has_the_declared_size() -> None:
    assert len(combinations()) >= 40


@pytest.mark.parametrize("values", combinations())
def test_a_combination_of_values_passes_schemas_and_policies(values: Values) -> None:
    objects = render(values)
    names = [(each["kind"], each["metadata"]["name"]) for each in objects]
    assert len(names) == len(set(names))
    for each in objects:
        check_schema(each, KUBERNETES)
        check_policy(each)
    _check_references(objects)


def _check_references(objects: list[dict[str, Any]]) -> None:
    """Volumes that are mounted exist, selectors find their pods, and names that the chart makes up are made."""
    made = {(each["kind"], each["metadata"]["name"]) for each in objects}
    labels = deployment(objects)["spec"]["template"]["metadata"]["labels"]
    pod = deployment(objects)["spec"]["template"]["spec"]
    volumes = {each["name"]: each for each in pod["volumes"]}
    mounts = server(objects)["volumeMounts"]
    assert {each["name"] for each in mounts} == set(volumes)
    assert len({each["mountPath"] for each in mounts}) == len(mounts)
    # Every file that a variable names is below something that is mounted.
    paths = [value for value in environment(server(objects)).values() if value.startswith(("/run/", "/etc/", "/data/"))]
    assert all(any(path.startswith(f"{each['mountPath']}/") for each in mounts) for path in paths)
    for source in volumes.get("secrets", {}).get("projected", {}).get("sources", []):
        name = source["secret"]["name"]
        assert ("Secret", name) in made or name in {"llm-proxy", "database"}
    for service in of_kind("Service", objects):
        if service["metadata"]["labels"]["app.kubernetes.io/component"] == "server":
            assert service["spec"]["selector"].items() <= labels.items()
    for budget in of_kind("PodDisruptionBudget", objects):
        assert budget["spec"]["selector"]["matchLabels"].items() <= labels.items()
    for scaler in of_kind("HorizontalPodAutoscaler", objects):
        assert ("Deployment", scaler["spec"]["scaleTargetRef"]["name"]) in made
        assert "replicas" not in deployment(objects)["spec"]
    account = pod["serviceAccountName"]
    assert ("ServiceAccount", account) in made or account == "default"


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@pytest.mark.parametrize("name", DATABASES)
def test_every_database_renders_on_older_and_newer_kubernetes(name: str, version: str) -> None:
    fleet = {} if name.startswith("sqlite") else {"replicas": 2}
    for each in render(merged(DATABASES[name], FEATURES["network"], fleet), kubernetes=version):
        check_schema(each, version)
        check_policy(each)


def test_sqlite_has_one_pod_at_a_time_and_a_claim_that_stays() -> None:
    objects = render({})
    assert deployment(objects)["spec"]["strategy"] == {"type": "Recreate"}
    (claim,) = of_kind("PersistentVolumeClaim", objects)
    assert claim["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    pod = deployment(objects)["spec"]["template"]["spec"]
    # Volumes that Kubernetes opens to the group at every start would open the server's key files too.
    assert pod["securityContext"]["fsGroupChangePolicy"] == "OnRootMismatch"


def test_servers_roll_one_by_one_without_a_pod_missing() -> None:
    strategy = deployment(render(DATABASES["postgres"]))["spec"]["strategy"]
    assert strategy == {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}


@pytest.mark.parametrize("kind", ["postgresql", "mysql"])
def test_an_in_cluster_database_always_has_one_pod(kind: str) -> None:
    values = DATABASES["postgres, inside" if kind == "postgresql" else "mysql, inside"]
    (database,) = of_kind("StatefulSet", render(merged(values, {"replicas": 2})))
    assert database["spec"]["replicas"] == 1
    with pytest.raises(Refused, match="Additional property replicas is not allowed"):
        render(merged(values, {kind: {"replicas": 3}}))


def test_large_numbers_and_booleans_reach_the_server_as_they_were_written() -> None:
    values = {"config": {"MAX_REQUEST_SIZE": 100000000, "ENABLE_METRICS": False, "REQUEST_TIMEOUT": "10m"}}
    variables = environment(server(render(values)))
    assert variables["MAX_REQUEST_SIZE"] == "100000000"
    assert variables["ENABLE_METRICS"] == "false"
    assert variables["REQUEST_TIMEOUT"] == "10m"


def test_pods_are_replaced_when_their_files_change() -> None:
    def annotations(values: Values) -> dict[str, str]:
        found: dict[str, str] = deployment(render(values))["spec"]["template"]["metadata"]["annotations"]
        return found

    one, other = ({"providers": {"config": {"default_api": name}}} for name in ("openai", "anthropic"))
    assert annotations(one)["checksum/providers"] != annotations(other)["checksum/providers"]
    priced = [annotations({"prices": {"config": {"prices": {name: {}}}}}) for name in ("openai", "anthropic")]
    assert priced[0]["checksum/prices"] != priced[1]["checksum/prices"]
    created = DATABASES["postgres, created"]
    changes = ({"managementToken": "f" * 32}, {"databaseUrl": "postgres://user:changed@database/llmproxy"})
    for secrets in changes:
        changed = merged(created, {"secrets": secrets})
        assert annotations(created)["checksum/secrets"] != annotations(changed)["checksum/secrets"]


def test_a_migration_job_runs_before_anything_else_and_needs_no_server_secrets() -> None:
    objects = render(merged(DATABASES["postgres"], FLEET["migrated by a job"]))
    (job,) = of_kind("Job", objects)
    assert job["metadata"]["annotations"]["helm.sh/hook"] == "pre-install,pre-upgrade"
    pod = job["spec"]["template"]["spec"]
    accounts = {
        each["metadata"]["name"]: each["metadata"].get("annotations", {}) for each in of_kind("ServiceAccount", objects)
    }
    assert accounts[pod["serviceAccountName"]]["helm.sh/hook"] == "pre-install,pre-upgrade"
    (source,) = next(each for each in pod["volumes"] if each["name"] == "secrets")["projected"]["sources"]
    assert source["secret"]["items"] == [{"key": "DATABASE_URL", "path": "database-url"}]
    assert pod["containers"][0]["command"] == ["llm-proxy", "migrate", "up"]


def test_a_network_policy_keeps_cloud_metadata_out_of_reach_and_the_database_within() -> None:
    values = merged(DATABASES["postgres, inside"], {"networkPolicy": {"enabled": True}})
    policies = {each["metadata"]["name"]: each["spec"] for each in of_kind("NetworkPolicy", render(values))}
    blocks = [to["ipBlock"] for rule in policies["llm-proxy"]["egress"] for to in rule.get("to", []) if "ipBlock" in to]
    assert {"cidr": "0.0.0.0/0", "except": ["169.254.0.0/16"]} in blocks
    assert {"cidr": "::/0", "except": ["fd00:ec2::254/128"]} in blocks
    database = policies["llm-proxy-postgresql"]
    assert database["egress"] == []
    (rule,) = database["ingress"]
    (peer,) = rule["from"]
    assert peer["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == "server"


def test_tokens_of_the_service_account_are_files_of_servers_only() -> None:
    tokens = [
        {"name": "openai", "audience": "https://api.openai.com/v1"},
        {"name": "azure", "audience": "api://AzureADTokenExchange", "expirationSeconds": 7200},
    ]
    values = merged(DATABASES["postgres"], FLEET["migrated by a job"], {"identityTokens": tokens})
    objects = render(values)
    (mount,) = [each for each in server(objects)["volumeMounts"] if each["name"] == "identity-tokens"]
    assert (mount["mountPath"], mount["readOnly"]) == ("/var/run/secrets/tokens", True)
    volumes = deployment(objects)["spec"]["template"]["spec"]["volumes"]
    (volume,) = [each for each in volumes if each["name"] == "identity-tokens"]
    assert [each["serviceAccountToken"] for each in volume["projected"]["sources"]] == [
        {"path": "openai", "audience": "https://api.openai.com/v1", "expirationSeconds": 3600},
        {"path": "azure", "audience": "api://AzureADTokenExchange", "expirationSeconds": 7200},
    ]
    (job,) = of_kind("Job", objects)
    assert "identity-tokens" not in str(job)


@pytest.mark.parametrize(
    "token",
    [
        {"name": "a"},
        {"audience": "a"},
        {"name": "../a", "audience": "a"},
        {"name": "a", "audience": "a", "expirationSeconds": 60},
        {"name": "a", "audience": "a", "path": "b"},
    ],
)
def test_a_token_of_the_service_account_that_is_not_complete_is_refused(token: Values) -> None:
    with pytest.raises(Refused):
        render({"identityTokens": [token]})
