"""Every mistake in a provider file is reported with its line, its path and what is allowed."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from llm_proxy.config import Settings, SettingsError
from llm_proxy.gateway.providers import provider_file
from llm_proxy.gateway.providers.provider import Auth
from tests.gateway.apis_yaml import load, mistakes

API = """
    apis:
      x:
        base_url: https://x.example
        allowed_endpoints: [/v1/a]
"""

KEYS = (
    "base_url, auth, auth_parameter, headers, allowed_endpoints, extra_endpoints, allowed_methods, param_whitelist, "
    "stream_usage, allowed_origins, required_headers, rewrite_urls, timeouts, connection"
)

AUTH = ", ".join(get_args(Auth))
DURATION = "a duration above zero such as 1h30m, 90s, 500ms, or a number of seconds"

#: A line that is added to the provider of `API`, and the mistake that is reported.
LINES = [
    ("auth: basic", f"apis.x.auth='basic': allowed: one of {AUTH}"),
    ("auth:", "apis.x.auth has no value; set one, or remove the key"),
    ("auth: ''", f"apis.x.auth='': allowed: one of {AUTH}"),
    ("auth: [bearer]", f"apis.x.auth is a list; allowed: one of {AUTH}"),
    ("headers: {x_team: a}", "apis.x.headers.x_team: allowed: the name of a header such as x-team"),
    (
        "headers: {Authorization: a}",
        (
            "apis.x.headers.Authorization: this header cannot be set, because the connection, the "
            "credential or the body determines it"
        ),
    ),
    (
        "headers: {content-type: a}",
        (
            "apis.x.headers.content-type: this header cannot be set, because the connection, the "
            "credential or the body determines it"
        ),
    ),
    ("headers: {x-a: a, X-A: b}", "apis.x.headers.X-A: this header is set twice; remove one"),
    ('headers: {x-a: "a\\nb"}', "apis.x.headers.x-a (value hidden): allowed: 1 to 1024 printable ASCII characters"),
    ("auth_parameter: key", "apis.x.auth_parameter has no effect without auth: query; remove it"),
    (
        "auth_parameter: a=b",
        "apis.x.auth_parameter='a=b': allowed: a name of letters, digits, - and _, such as key",
    ),
    ("extra_endpoints: [v1]", "apis.x.extra_endpoints='v1': an endpoint begins with /, such as /v1/chat/completions"),
    ("autth: bearer", f"apis.x.autth is not known; did you mean auth?; allowed: {KEYS}"),
    ("zzz: 1", f"apis.x.zzz is not known; allowed: {KEYS}"),
    ("<<: {auth: bearer}", f"apis.x.<< is not known; allowed: {KEYS}"),
    ("? [1]\n        : 2", "apis.x has a key that is not a name"),
    ("base_url: https://y.example", "apis.x.base_url is set twice, on line 4 already; remove one"),
    (
        "allowed_methods: [GET, BREW]",
        "apis.x.allowed_methods='BREW': allowed: one of GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS",
    ),
    ("allowed_methods: []", "apis.x.allowed_methods is empty; list at least one value, or remove the key"),
    ("param_whitelist: [model]", "apis.x.param_whitelist is a list; it must be a mapping of names to values"),
    (
        "param_whitelist: {model: []}",
        "apis.x.param_whitelist.model is empty; list at least one value, or remove the key",
    ),
    (
        "param_whitelist: {model: [[a]]}",
        "apis.x.param_whitelist.model is a list; allowed: a value such as gpt-4o, or a pattern such as gpt-4.1-*",
    ),
    (
        "param_whitelist: {model: a, Model: b}",
        "apis.x.param_whitelist.Model and model differ only in case; remove one",
    ),
    (
        "allowed_origins: [https://a.example/]",
        ("apis.x.allowed_origins='https://a.example/': allowed: * or an origin such as https://app.example.com"),
    ),
    (
        "required_headers: [x_team]",
        "apis.x.required_headers='x_team': allowed: the name of a header such as x-team",
    ),
    ("timeouts: 5s", "apis.x.timeouts is a single value; it must be a mapping of names to values"),
    (
        "timeouts: {conect: 5s}",
        "apis.x.timeouts.conect is not known; did you mean connect?; allowed: connect, response_header, idle, request",
    ),
    ("timeouts: {connect: 0}", f"apis.x.timeouts.connect='0': allowed: {DURATION}"),
    ("timeouts: {idle: -1s}", f"apis.x.timeouts.idle='-1s': allowed: {DURATION}"),
    ("timeouts: {request: soon}", f"apis.x.timeouts.request='soon': allowed: {DURATION}"),
    (
        "connection: {max_idle_conns: 1}",
        (
            "apis.x.connection.max_idle_conns is not known; did you mean max_idle_conns_per_host?; "
            "allowed: max_idle_conns_per_host"
        ),
    ),
    (
        "connection: {max_idle_conns_per_host: 10001}",
        "apis.x.connection.max_idle_conns_per_host='10001': allowed: a whole number from 0 to 10000",
    ),
]


@pytest.mark.parametrize(("line", "mistake"), LINES)
def test_a_wrong_line_is_reported_with_its_path(tmp_path: Path, line: str, mistake: str) -> None:
    assert mistakes(tmp_path, f"{API}        {line}\n") == [f"apis.yaml, line 6: {mistake}"]


#: Whole files, and all mistakes that are reported.
FILES = [
    ("", ["line 1: the file is empty; it needs apis, with at least one provider"]),
    ("- a", ["line 1: the file is a list; it must be a mapping of names to values"]),
    ("default_api: openai", ["line 1: apis is missing; it must contain at least one provider"]),
    ("apis: {}", ["line 1: apis contains no provider; add at least one"]),
    ("apis:", ["line 1: apis has no value; set one, or remove the key"]),
    ("apis: {openai: 3}", ["line 1: apis.openai is a single value; it must be a mapping of names to values"]),
    ("apis: {openai: }", ["line 1: apis.openai has no value; set one, or remove the key"]),
    (
        "api: {}\napis: {openai: {}}",
        ["line 1: api is not known; did you mean apis?; allowed: default_api, apis"],
    ),
    (
        "default_api: opnai\napis: {openai: {}, anthropic: {}}",
        ["line 1: default_api='opnai': there is no such provider; did you mean openai?; allowed: openai, anthropic"],
    ),
    (
        "apis:\n  a: {base_url: 'https://a', allowed_endpoints: [/a]}\n  anthropic: {}",
        ["line 1: default_api is missing; set it to one of a, anthropic"],
    ),
    (
        "apis: {x: {}}",
        [
            "line 1: apis.x.base_url is missing; set it, e.g. base_url: https://api.example.com",
            "line 1: apis.x.allowed_endpoints is missing; set it, e.g. allowed_endpoints: [/v1/chat/completions]",
        ],
    ),
    (
        "apis:\n  openai:\n    base_url: https://u:secret@x",
        [("line 3: apis.openai.base_url (value hidden): a base URL has no user and no password")],
    ),
    ("null", ["line 1: the file is empty; it needs apis, with at least one provider"]),
    (
        "apis: {openai: {auth: !!bool foo}}",
        [f"line 1: apis.openai.auth='foo': allowed: one of {AUTH}"],
    ),
    (
        "apis: {openai: {auth: sk-SECRET1234567890abcdefghij}}",
        [f"line 1: apis.openai.auth (value hidden): allowed: one of {AUTH}"],
    ),
    (
        "apis: {openai: {auth: sk-SECRET123}}",
        [f"line 1: apis.openai.auth='[redacted]': allowed: one of {AUTH}"],
    ),
    (
        "apis: {openai: {auth: 0123456789abcdef0123456789ABCDEF}}",
        [f"line 1: apis.openai.auth (value hidden): allowed: one of {AUTH}"],
    ),
    (
        "default_api: 0123456789abcdef0123456789ABCDEF\napis: {openai: {}}",
        ["line 1: default_api (value hidden): there is no such provider; allowed: openai"],
    ),
    (
        "apis: {openai: {base_url: 'x.example?key=0123456789'}}",
        ["line 1: apis.openai.base_url (value hidden): a base URL begins with https:// or http://"],
    ),
    (
        "apis: {openai: {base_url: 'x.example'}}",
        ["line 1: apis.openai.base_url='x.example': a base URL begins with https:// or http://"],
    ),
    (
        "apis: {openai: {base_url: 'https://x?y=1'}}",
        ["line 1: apis.openai.base_url (value hidden): a base URL has no query and no fragment"],
    ),
    (
        "apis: {openai: {base_url: 'https://x/v1/'}}",
        [
            (
                "line 1: apis.openai.base_url: it ends in /v1, and the endpoints begin with /v1, so requests "
                "would go to /v1/v1/…; remove /v1 from it"
            )
        ],
    ),
    (
        "apis: {openai: {allowed_endpoints: [v1/x, /v1/**/x]}}",
        [
            ("line 1: apis.openai.allowed_endpoints='v1/x': an endpoint begins with /, such as /v1/chat/completions"),
            (
                "line 1: apis.openai.allowed_endpoints='/v1/**/x': "
                "** matches all remaining segments and can only be the last segment"
            ),
        ],
    ),
    (
        "apis: {OpenAI: {base_url: 'https://x', allowed_endpoints: [/a]}}",
        [
            (
                "line 1: apis.OpenAI: this is not a valid name; "
                "allowed: 1 to 32 lower-case letters, digits, - and _, with a letter first"
            )
        ],
    ),
    (
        "apis: {groq_AI: {base_url: 'https://x', allowed_endpoints: [/a]}}",
        [
            (
                "line 1: apis.groq_AI: this is not a valid name; "
                "allowed: 1 to 32 lower-case letters, digits, - and _, with a letter first"
            )
        ],
    ),
    (
        "apis: {azure: {}}",
        ["line 1: apis.azure.base_url is missing; set it, e.g. base_url: https://my-resource.openai.azure.com/openai"],
    ),
    (
        "apis: {azure: {base_url: 'https://x'}}",
        [
            "line 1: apis.azure.base_url: the URL has no path; write it like https://my-resource.openai.azure.com/openai",
        ],
    ),
    (
        "apis: {x: {base_url: 'https://x/api', allowed_endpoints: [/api/chat]}}",
        [
            (
                "line 1: apis.x.base_url: it ends in /api, and the endpoint /api/chat begins with it; "
                "remove it from one of them"
            ),
        ],
    ),
    (
        "default_api: groq\napis: {openai: {}}",
        [
            (
                "line 1: default_api='groq': this provider is not configured; add apis: {groq: {}} to the "
                "provider file (API_CONFIG_PATH)"
            ),
        ],
    ),
    ("apis: {openai: {}}\n---\napis: {}", ["line 2: this is not YAML: but found another document"]),
    ("apis: [", ["line 1: this is not YAML: expected the node content, but found '<stream end>'"]),
    ("apis:\n\topenai: {}", ["line 2: this is not YAML: found character '\\t' that cannot start any token"]),
    ("apis: \x01", ["line 1: this is not YAML: it contains control characters, or is nested too deeply"]),
    ("[" * 5000, ["line 1: this is not YAML: it contains control characters, or is nested too deeply"]),
    ("apis: &a {openai: *a}", ["line 1: apis.openai.openai is not known; allowed: " + KEYS]),
]


@pytest.mark.parametrize(("text", "reported"), FILES)
def test_all_mistakes_of_a_wrong_file_are_reported(tmp_path: Path, text: str, reported: list[str]) -> None:
    assert mistakes(tmp_path, text) == [f"apis.yaml, {line}" for line in reported]


@pytest.mark.parametrize("name", ["manage", "admin", "health", "live", "ready", "metrics", "v1", "openapi.json"])
def test_a_provider_with_a_reserved_name_is_refused(tmp_path: Path, name: str) -> None:
    text = f"apis: {{{name}: {{base_url: 'https://x', allowed_endpoints: [/a]}}}}"
    assert mistakes(tmp_path, text) == [
        f"apis.yaml, line 1: apis.{name}: the server itself uses /{name}; choose another name"
    ]


def test_a_provider_with_the_name_of_the_metrics_path_is_refused(tmp_path: Path) -> None:
    text = "apis: {console: {base_url: 'https://x', allowed_endpoints: [/a]}}"
    load(tmp_path, text)
    assert mistakes(tmp_path, text, METRICS_PATH="/console/metrics") == [
        "apis.yaml, line 1: apis.console: the server itself uses /console; choose another name"
    ]


def test_a_metrics_path_under_a_built_in_provider_is_refused() -> None:
    with pytest.raises(SettingsError) as caught:
        provider_file.load(Settings.load({"METRICS_PATH": "/openai/metrics"}))
    assert str(caught.value) == (
        "METRICS_PATH='/openai/metrics': /openai is the path of a provider; choose another path"
    )


def test_all_mistakes_are_reported_in_order_of_lines(tmp_path: Path) -> None:
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


def test_a_file_that_is_not_utf_8_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "apis.yaml"
    path.write_bytes(b"apis: \xff")
    with pytest.raises(SettingsError, match="the file is not UTF-8 text"):
        provider_file.load(Settings.load({"API_CONFIG_PATH": str(path)}))
