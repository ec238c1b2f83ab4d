"""Other gateways: what is written for them, what is made of the samples, and nginx for real where there is one."""

from __future__ import annotations

import logging.config
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, cast

import attrs
import msgspec
import pytest
import yaml

from benchmarks.databases import Databases
from benchmarks.findings import Chapter
from benchmarks.peers import chapter, go_llm_proxy, gomodel, installing, litellm, measurement, nginx, portkey
from benchmarks.peers.contender import (
    DIRECT,
    OUR_TRAITS,
    OURS,
    TRAITS,
    Contender,
    Traits,
    await_answer,
    bearer,
    contend_directly,
    start_program,
)
from benchmarks.peers.installing import Absent, find_program, install_once
from benchmarks.processes import ProcessFailed, Upstream
from benchmarks.proxy import call
from benchmarks.rig import KEY, Bench, LoadFailed, Rig, Sample
from benchmarks.targets import OVER_LITELLM, OVER_PORTKEY

if TYPE_CHECKING:
    from benchmarks.processes import Process

UPSTREAM = "http://127.0.0.1:4321"


def sample(rate: float, p50: float = 1.0, share: float = 0.2) -> Sample:
    report = {"requests": 100, "rate": rate, "cpu_share": share, "latency_ms": {"p50": p50, "p99": 3 * p50}}
    return Sample([report], cpu_us=1e6 / rate, upstream_share=0.3)


def contender(name: str, traits: Traits | None, *rates: float, single: float = 1.0, share: float = 0.2) -> Contender:
    found = Contender.at(name, f"{UPSTREAM}/v1/chat/completions", {}, cast("Process", None), traits)
    found.samples = [sample(rate, share=share) for rate in rates]
    found.singles = [sample(100.0, single) for _ in rates]
    found.memory = [50_000_000 for _ in rates]
    return found


def contenders(share: float = 0.2) -> list[Contender]:
    """Our rates, 3,000 to 4,000, are 30 to 20 times LiteLLM's, and ten times Portkey's."""
    return [
        contender(DIRECT, None, 9000.0, 9000.0, 9000.0, single=0.5),
        contender(OURS, OUR_TRAITS, 3000.0, 3600.0, 4000.0, single=1.5),
        contender(portkey.NAME, portkey.TRAITS, 300.0, 360.0, 400.0, share=share),
        contender(litellm.NAME, litellm.TRAITS, 100.0, 150.0, 200.0, single=8.5),
    ]


def written(found: list[Contender], absent: dict[str, str] | None = None) -> Chapter:
    return chapter.write(found, absent or {}, ["odd"], rounds=3, seconds={chapter.CONNECTIONS: 2.5, 1: 1.0})


def test_checks_are_medians_of_the_rounds_ratios() -> None:
    checks = {check.name: check for check in written(contenders()).checks}
    assert {check.bound for check in checks.values()} == {OVER_LITELLM, OVER_PORTKEY}
    over_portkey = checks[f"Capacity over {portkey.NAME} without keys, SQLite, 32 connections"]
    over_litellm = checks[f"Capacity over {litellm.NAME} without its database, SQLite, 32 connections"]
    assert over_portkey.measured == pytest.approx(10)
    assert over_portkey.met
    assert over_litellm.measured == pytest.approx(24)
    assert not over_litellm.met


def test_peers_in_go_have_targets_at_one_connection_too() -> None:
    found = [
        *contenders()[:2],
        contender(go_llm_proxy.NAME, go_llm_proxy.TRAITS, 4000.0, 4800.0, 5000.0),
        contender(gomodel.NAME, gomodel.TRAITS, 2000.0, 2400.0, 4000.0),
    ]
    found[2].singles = [sample(200.0) for _ in range(3)]
    checks = {check.name: check for check in written(found).checks}
    many, one = "SQLite, 32 connections", "SQLite, 1 connection"
    assert checks[f"Capacity over {go_llm_proxy.NAME} without a ledger, {many}"].met
    assert not checks[f"Requests/s over {go_llm_proxy.NAME} without a ledger, {one}"].met
    assert checks[f"CPU per request over {gomodel.NAME} without tokens, {many}"].met
    assert checks[f"CPU per request over {gomodel.NAME} without tokens, {one}"].met
    (line, _) = written(found[:2], {gomodel.NAME: "no program"}).unchecked
    assert line == f"CPU per request over {gomodel.NAME} without tokens, {many} (at most 0.8 x): no program"


def test_results_are_medians_and_the_upstream_has_no_added_latency() -> None:
    table = written(contenders()).tables[0]
    rows = {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    assert rows[OURS]["requests/s"] == 3600
    assert rows[OURS]["lowest to highest"] == "3,000 to 4,000"
    assert rows[litellm.NAME]["LLM Proxy over it"] == "24 x"
    assert rows[litellm.NAME]["added p50 ms, 1 connection"] == pytest.approx(8)
    assert rows[OURS]["µs CPU/request"] == pytest.approx(1e6 / 3600)
    assert rows[OURS]["memory MB"] == 50
    assert rows[DIRECT]["added p50 ms, 1 connection"] == ""


def test_traits_have_a_column_for_each_gateway_and_say_something_in_each_cell() -> None:
    table = written(contenders()).tables[1]
    assert table.columns == ("", OURS, portkey.NAME, litellm.NAME)
    assert [row[0] for row in table.rows] == list(TRAITS.values())
    assert all(str(cell) for row in table.rows for cell in row)
    assert list(TRAITS) == [field.name for field in attrs.fields(Traits)]


def test_plots_have_a_bar_for_each_gateway() -> None:
    capacity, cost = written(contenders()).plots
    assert [len(plot.series[0].points) for plot in (capacity, cost)] == [4, 4]
    assert (capacity.kind, cost.kind, cost.log_y) == ("bars", "bars", True)


def test_absent_peers_are_listed_with_the_reason() -> None:
    found = contenders()[:3]
    told = written(found, {litellm.NAME: "no network", nginx.NAME: "install it"})
    assert told.unchecked == [
        f"Capacity over {litellm.NAME} without its database, SQLite, 32 connections (at least 25 x): no network",
        "nginx was not measured: install it",
    ]
    assert [check.bound for check in told.checks] == [OVER_PORTKEY]


def test_a_busy_load_generator_is_a_problem_only_where_it_makes_us_look_better() -> None:
    assert written(contenders()).problems == ["odd"]
    assert any(portkey.NAME in problem for problem in written(contenders(share=0.9)).problems)
    found = contenders()
    found[1] = contender(OURS, OUR_TRAITS, 3000.0, 3600.0, 4000.0, share=0.9)
    told = written(found)
    assert told.problems == ["odd"]
    assert "capacity is higher than shown" in told.method


def test_raw_samples_are_json() -> None:
    raw = msgspec.json.decode(msgspec.json.encode(written(contenders()).raw))
    assert len(raw["samples"][OURS]["many"]) == 3
    assert raw["seconds"] == {"32": 2.5, "1": 1.0}


def test_litellm_gets_one_model_and_neither_database_nor_master_key() -> None:
    found = yaml.safe_load(litellm.configuration(UPSTREAM))
    (model,) = found["model_list"]
    assert model["model_name"] == "gpt-scripted"
    expected = {"model": "openai/gpt-scripted", "api_base": f"{UPSTREAM}/v1", "api_key": KEY}
    assert model["litellm_params"] == expected
    assert "general_settings" not in found
    assert found["litellm_settings"]["set_verbose"] is False


def test_litellms_access_log_has_no_handler() -> None:
    before = logging.getLogger("uvicorn.access").propagate
    logging.config.dictConfig(msgspec.json.decode(litellm.log_configuration()))
    try:
        assert not logging.getLogger("uvicorn.access").hasHandlers()
    finally:
        logging.getLogger("uvicorn.access").propagate = before


def test_portkey_gets_provider_address_and_key() -> None:
    assert portkey.headers(UPSTREAM) == {
        "x-portkey-provider": "openai",
        "x-portkey-custom-host": f"{UPSTREAM}/v1",
        "Authorization": f"Bearer {KEY}",
    }


def test_headers_become_options_of_the_load_generator() -> None:
    found = Contender.at("it", "http://127.0.0.1:1/x", {"a": "b", "c": "d"}, cast("Process", None))
    assert found.loads == [("--url", "http://127.0.0.1:1/x", "--header", "a: b", "--header", "c: d")]


def test_nginx_keeps_connections_on_loopback() -> None:
    text = nginx.configuration(UPSTREAM, 8765, root=False)
    assert "listen 127.0.0.1:8765;" in text
    assert "server 127.0.0.1:4321;" in text
    assert "keepalive 128;" in text
    assert "worker_processes 1;" in text
    assert "user" not in text
    assert "user root root;" in nginx.configuration(UPSTREAM, 8765, root=True)


def test_installation_runs_once_and_again_only_after_a_failure(tmp_path: Path) -> None:
    said: list[str] = []
    folder = tmp_path / "gateway-1"
    add = (sys.executable, "-c", f"open({str(folder / 'count')!r}, 'a').write('x')")
    fail = (sys.executable, "-c", "print('no such version'); raise SystemExit(1)")
    with pytest.raises(Absent, match=r"installing gateway-1 failed: no such version"):
        install_once(folder, [add, fail], said.append)
    for _ in range(2):
        assert install_once(folder, [add], said.append) == folder
    assert (folder / "count").read_text() == "x"
    assert len(said) == 2


def test_a_missing_program_says_what_to_install() -> None:
    with pytest.raises(Absent, match=r"no no-such-gateway on this machine; brew it"):
        find_program("no-such-gateway", "brew it")
    assert find_program(Path(sys.executable).name, "").exists()


def test_a_program_gets_no_settings_of_the_developer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    command = (sys.executable, "-c", "import os; print(sorted(os.environ), os.getpid())")
    with start_program(command, log=tmp_path / "output.log", env={"MINE": "1"}) as process:
        process.wait()
    names, pid = (tmp_path / "output.log").read_text().rsplit(" ", 1)
    assert "MINE" in names
    assert "HTTP_PROXY" not in names
    assert int(pid) == process.pid


def test_a_program_that_ends_raises_with_its_output(tmp_path: Path) -> None:
    log = tmp_path / "output.log"
    command = (sys.executable, "-c", "print('port taken')")
    with start_program(command, log=log) as process:
        process.wait()
        with pytest.raises(ProcessFailed, match="port taken"):
            await_answer(process, "http://127.0.0.1:9/", log)


def test_absent_peers_leave_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, upstream: Upstream, bench: Bench
) -> None:
    said: list[str] = []

    def refuse(*_: object) -> Contender:
        raise Absent("no network")

    def start(_rig: Rig, running: Upstream, _cache: Path) -> Contender:
        return contend_directly(running)

    monkeypatch.setattr(measurement, "_PEERS", {"gone": refuse, "here": start})
    peers, absent = measurement.start_peers(Rig(attrs.evolve(bench, say=said.append), "peers"), upstream, tmp_path)
    assert [peer.name for peer in peers] == [DIRECT]
    assert absent == {"gone": "no network"}
    assert said == ["NOT MEASURED: gone: no network"]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path, Databases(), [], rounds=1, scale=0.01, say=lambda _: None)


def test_a_wrong_answer_is_found(bench: Bench) -> None:
    with Rig(bench, "peers") as rig:
        upstream = rig.start_upstream()
        direct = contend_directly(upstream)
        answer = measurement.ask(direct)
        assert measurement.verify(direct, upstream, answer) == []
        (problem,) = measurement.verify(direct, upstream, answer | {"content": "else"})
        assert "All's well" in problem
        with Upstream.start("--answers", "plain", "--key", KEY) as other:
            (problem,) = measurement.verify(direct, other, answer)
        assert "asked 0 times" in problem
        direct.headers = bearer("sk-wrong")
        with pytest.raises(LoadFailed, match="401"):
            measurement.ask(direct)


def test_a_round_counts_what_the_upstream_served(bench: Bench) -> None:
    with Rig(bench, "peers") as rig:
        upstream = rig.start_upstream()
        direct = contend_directly(upstream)
        assert measurement.measure(direct, upstream, bench) == []
        with Upstream.start("--answers", "plain", "--key", KEY) as other:
            problems = measurement.measure(direct, other, bench)
    assert len(problems) == 2
    assert "the upstream served 0 requests" in problems[0]
    assert [len(found) for found in (direct.samples, direct.singles, direct.memory)] == [2, 2, 2]
    assert direct.memory[0] > 1_000_000


def test_portkeys_preload_binds_to_loopback(tmp_path: Path) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("Node.js is not installed")
    preload = tmp_path / "preload.cjs"
    preload.write_text(portkey.LOOPBACK_ONLY)
    script = (
        "const server = require('node:http').createServer().listen(0, undefined, () => "
        "{ console.log(server.address().address); server.close(); });"
    )
    found = subprocess.run([node, "--require", preload, "-e", script], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "127.0.0.1"


def test_nginx_passes_requests_on(bench: Bench) -> None:
    try:
        find_program("nginx", "sudo apt-get install nginx")
    except Absent as error:
        pytest.skip(str(error))
    with Rig(bench, "peers") as rig:
        upstream = rig.start_upstream()
        direct = contend_directly(upstream)
        found = nginx.start(rig, upstream, installing.CACHE)
        assert measurement.verify(found, upstream, measurement.ask(direct)) == []
        assert measurement.measure(found, upstream, bench) == []
        process = found.process
    assert not process.running
    with pytest.raises(OSError, match="refused"):
        call("GET", found.url)
