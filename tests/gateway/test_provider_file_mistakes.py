"""Every mistake in a provider file is told with its place and what is allowed."""

from __future__ import annotations

from pathlib import Path

import pytest

from llm_proxy.config import Settings, SettingsError
from llm_proxy.gateway.providers import provider_file
from tests.gateway.apis_yaml import load, mistakes

API = """
    apis:
      x:
        base_url: https://x.example
        allowed_endpoints: [/v1/a]
"""

KEYS = (
    "base_url, auth, allowed_endpoints, allowed_methods, param_whitelist, allowed_origins, required_headers, timeouts, "
    "connection"
)

DURATION = "a duration above zero such as 1h30m, 90s, 500ms, or a number of seconds"

#: A line that is added to the provider of `API`, and what is said about it.
LINES = [
    ("auth: basic", "apis.x.auth: 'basic' does not fit; allowed: bearer, x-api-key, api-key"),
    ("auth:", "apis.x.auth has no value; give it one, or leave it out"),
    ("auth: ''", "apis.x.auth: '' does not fit; allowed: bearer, x-api-key, api-key"),
    ("auth: [bearer]", "apis.x.auth is a list; allowed: bearer, x-api-key, api-key"),
    ("autth: bearer", f"apis.x.autth is not known; did you mean auth?; allowed: {KEYS}"),
    ("zzz: 1", f"apis.x.zzz is not known; allowed: {KEYS}"),
    ("<<: {auth: bearer}", f"apis.x.<< is not known; allowed: {KEYS}"),
    ("? [1]\n        : 2", "apis.x has a key that is no name"),
    ("base_url: https://y.example", "apis.x.base_url is set twice, on line 4 already; keep one"),
    (
        "allowed_methods: [GET, BREW]",
        "apis.x.allowed_methods: 'BREW' does not fit; allowed: GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS",
    ),
    (
        "allowed_methods: GET",
        "apis.x.allowed_methods is a single value; it has to be a list: GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS",
    ),
    (
        "allowed_methods: []",
        (
            "apis.x.allowed_methods is empty; list at least one, or leave it out: "
            "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"
        ),
    ),
    ("param_whitelist: [model]", "apis.x.param_whitelist is a list; it has to be a mapping of names to values"),
    (
        "param_whitelist: {model: []}",
        (
            "apis.x.param_whitelist.model is empty; list at least one, or leave it out: "
            "values, with * for any text, such as [gpt-4o, gpt-4.1-*]"
        ),
    ),
    (
        "param_whitelist: {model: [[a]]}",
        "apis.x.param_whitelist.model is a list; allowed: values, with * for any text, such as [gpt-4o, gpt-4.1-*]",
    ),
    (
        "param_whitelist: {model: a, Model: b}",
        "apis.x.param_whitelist.Model differs from model by its case only; keep one",
    ),
    (
        "allowed_origins: [https://a.example/]",
        (
            "apis.x.allowed_origins: 'https://a.example/' does not fit; "
            "allowed: * or origins such as https://app.example.com"
        ),
    ),
    (
        "required_headers: [x_team]",
        "apis.x.required_headers: 'x_team' does not fit; allowed: names of headers such as x-team",
    ),
    ("timeouts: 5s", "apis.x.timeouts is a single value; it has to be a mapping of names to values"),
    (
        "timeouts: {conect: 5s}",
        "apis.x.timeouts.conect is not known; did you mean connect?; allowed: connect, response_header, idle, request",
    ),
    ("timeouts: {connect: 0}", f"apis.x.timeouts.connect: '0' does not fit; allowed: {DURATION}"),
    ("timeouts: {idle: -1s}", f"apis.x.timeouts.idle: '-1s' does not fit; allowed: {DURATION}"),
    ("timeouts: {request: soon}", f"apis.x.timeouts.request: 'soon' does not fit; allowed: {DURATION}"),
    (
        "connection: {max_idle_conns: 1}",
        (
            "apis.x.connection.max_idle_conns is not known; did you mean max_idle_conns_per_host?; "
            "allowed: max_idle_conns_per_host"
        ),
    ),
    (
        "connection: {max_idle_conns_per_host: 10001}",
        "apis.x.connection.max_idle_conns_per_host: '10001' does not fit; allowed: a whole number from 0 to 10000",
    ),
]


@pytest.mark.parametrize(("line", "said"), LINES)
def test_a_wrong_line_is_told_with_its_place(tmp_path: Path, line: str, said: str) -> None:
    assert mistakes(tmp_path, f"{API}        {line}\n") == [f"apis.yaml, line 6: {said}"]


#: Whole files, and all that is said about them.
FILES = [
    ("", ["line 1: the file is empty; it needs apis, with at least one provider"]),
    ("- a", ["line 1: the file is a list; it has to be a mapping of names to values"]),
    ("default_api: openai", ["line 1: apis is missing; it has to hold at least one provider"]),
    ("apis: {}", ["line 1: apis holds no provider; name at least one"]),
    ("apis:", ["line 1: apis has no value; give it one, or leave it out"]),
    ("apis: {openai: 3}", ["line 1: apis.openai is a single value; it has to be a mapping of names to values"]),
    ("apis: {openai: }", ["line 1: apis.openai has no value; give it one, or leave it out"]),
    (
        "api: {}\napis: {openai: {}}",
        ["line 1: api is not known; did you mean apis?; allowed: default_api, apis"],
    ),
    (
        "default_api: opnai\napis: {openai: {}, anthropic: {}}",
        ["line 1: default_api: there is no provider 'opnai'; did you mean openai?; allowed: openai, anthropic"],
    ),
    (
        "apis:\n  a: {base_url: 'https://a', allowed_endpoints: [/a]}\n  anthropic: {}",
        ["line 1: default_api is missing; choose one of a, anthropic"],
    ),
    (
        "apis: {x: {}}",
        [
            "line 1: apis.x.base_url is missing; set it, such as base_url: https://api.example.com",
            "line 1: apis.x.allowed_endpoints is missing; set it, such as allowed_endpoints: [/v1/chat/completions]",
        ],
    ),
    (
        "apis:\n  openai:\n    base_url: https://u:secret@x",
        [
            (
                "line 3: apis.openai.base_url: the value does not fit: "
                "a base URL holds no user or password; the key comes from the project"
            )
        ],
    ),
    (
        "apis: {openai: {base_url: 'x.example'}}",
        ["line 1: apis.openai.base_url: 'x.example' does not fit: a base URL begins with https:// or http://"],
    ),
    (
        "apis: {openai: {base_url: 'https://x?y=1'}}",
        ["line 1: apis.openai.base_url: 'https://x?y=1' does not fit: a base URL has no query and no fragment"],
    ),
    (
        "apis: {openai: {base_url: 'https://x/v1/'}}",
        [
            (
                "line 1: apis.openai.base_url: it ends in /v1, and the endpoints begin with /v1, so that requests "
                "would go to /v1/v1/…; leave /v1 off"
            )
        ],
    ),
    (
        "apis: {openai: {allowed_endpoints: [v1/x, /v1/**/x]}}",
        [
            (
                "line 1: apis.openai.allowed_endpoints: 'v1/x' does not fit: "
                "an endpoint begins with /, such as /v1/chat/completions"
            ),
            (
                "line 1: apis.openai.allowed_endpoints: '/v1/**/x' does not fit: "
                "** stands for all the rest and can only be the last segment"
            ),
        ],
    ),
    (
        "apis: {OpenAI: {base_url: 'https://x', allowed_endpoints: [/a]}}",
        [
            (
                "line 1: apis.OpenAI: this cannot be a provider's name; "
                "allowed: 1 to 32 lower-case letters, digits, - and _, beginning with a letter"
            )
        ],
    ),
    (
        "apis: {groq_AI: {base_url: 'https://x', allowed_endpoints: [/a]}}",
        [
            (
                "line 1: apis.groq_AI: this cannot be a provider's name; "
                "allowed: 1 to 32 lower-case letters, digits, - and _, beginning with a letter"
            )
        ],
    ),
    ("apis: {openai: {}}\n---\napis: {}", ["line 2: this is not YAML: but found another document"]),
    ("apis: [", ["line 1: this is not YAML: expected the node content, but found '<stream end>'"]),
    ("apis:\n\topenai: {}", ["line 2: this is not YAML: found character '\\t' that cannot start any token"]),
    ("apis: \x01", ["line 1: this is not YAML: it holds control characters, or is nested too deeply"]),
    ("[" * 5000, ["line 1: this is not YAML: it holds control characters, or is nested too deeply"]),
    ("apis: &a {openai: *a}", ["line 1: apis.openai.openai is not known; allowed: " + KEYS]),
]


@pytest.mark.parametrize(("text", "said"), FILES)
def test_a_wrong_file_is_told_with_everything_that_is_wrong(tmp_path: Path, text: str, said: list[str]) -> None:
    assert mistakes(tmp_path, text) == [f"apis.yaml, {line}" for line in said]


@pytest.mark.parametrize("name", ["manage", "admin", "health", "live", "ready", "metrics", "v1", "openapi.json"])
def test_the_servers_own_paths_cannot_be_providers(tmp_path: Path, name: str) -> None:
    text = f"apis: {{{name}: {{base_url: 'https://x', allowed_endpoints: [/a]}}}}"
    assert mistakes(tmp_path, text) == [
        f"apis.yaml, line 1: apis.{name}: the path /{name} is the server's own; choose another name"
    ]


def test_neither_can_the_metrics_that_were_moved(tmp_path: Path) -> None:
    text = "apis: {console: {base_url: 'https://x', allowed_endpoints: [/a]}}"
    load(tmp_path, text)
    assert mistakes(tmp_path, text, METRICS_PATH="/console/figures") == [
        "apis.yaml, line 1: apis.console: the path /console is the server's own; choose another name"
    ]


def test_the_metrics_cannot_be_where_a_provider_is() -> None:
    with pytest.raises(SettingsError) as caught:
        provider_file.load(Settings.load({"METRICS_PATH": "/openai/metrics"}))
    assert str(caught.value) == (
        "METRICS_PATH='/openai/metrics': /openai is the path of a provider; choose another path"
    )


def test_all_mistakes_come_at_once_in_order_of_lines(tmp_path: Path) -> None:
    text = """\
        apis:
          openai: {auth: basic}
          x: {base_url: "https://x", allowed_endpoints: [x]}
        nope: 1
        default_api: y
        """
    found = mistakes(tmp_path, text, DEFAULT_API_PROVIDER="z")
    assert [line.split(":")[0] for line in found] == [
        "apis.yaml, line 2",
        "apis.yaml, line 3",
        "apis.yaml, line 4",
        "apis.yaml, line 5",
        "DEFAULT_API_PROVIDER='z'",
    ]


def test_a_file_that_is_not_text_is_told(tmp_path: Path) -> None:
    path = tmp_path / "apis.yaml"
    path.write_bytes(b"apis: \xff")
    with pytest.raises(SettingsError, match="the file is not UTF-8 text"):
        provider_file.load(Settings.load({"API_CONFIG_PATH": str(path)}))
