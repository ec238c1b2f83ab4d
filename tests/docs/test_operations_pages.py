"""The pages about systemd and security, as far as they can be followed without a running systemd."""

from __future__ import annotations

import shutil
import stat
import subprocess
from pathlib import Path

from tests.databases.fixtures import lacking
from tests.docs.blocks import block
from tests.docs.prompt import done
from tests.harness.server import MANAGEMENT_TOKEN, ROOT, StartServer

SYSTEMD = ROOT / "docs" / "deployment" / "systemd.md"
AUDIT = ROOT / "docs" / "operations" / "audit.md"
SECURITY = ROOT / "docs" / "operations" / "security.md"


def unit(folder: Path) -> Path:
    """The unit of the page "systemd.md", and the template that is made from it, in a folder for /etc."""
    place = folder / "etc/systemd/system"
    place.mkdir(parents=True)
    (place / "llm-proxy.service").write_text(block(SYSTEMD, "unit"))
    done(block(SYSTEMD, "template").replace("/etc/", f"{folder}/etc/"), folder)
    return place


def test_settings_of_the_systemd_page_are_valid(tmp_path: Path, start_server: StartServer) -> None:
    script = block(SYSTEMD, "settings")
    (tmp_path / "var/lib/llm-proxy").mkdir(parents=True)
    (tmp_path / "etc").mkdir()
    done(script.replace("/etc/", f"{tmp_path}/etc/").replace("/var/", f"{tmp_path}/var/"), tmp_path)
    file = tmp_path / "etc/llm-proxy/llm-proxy.env"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    nothing = dict.fromkeys(("MANAGEMENT_TOKEN", "ENCRYPTION_KEY"), "")
    server = start_server({}, nothing, "--config", str(file))
    assert (tmp_path / "var/lib/llm-proxy/llm-proxy.db").exists()
    found = done(block(SECURITY, "check"), tmp_path, {"URL": server.url})
    lines = [line.split() for line in found.splitlines()]
    assert len(lines) == 8
    assert all(expected == seen for expected, seen in lines), found


def test_security_check_finds_a_file_that_others_can_read(tmp_path: Path, start_server: StartServer) -> None:
    server = start_server({"DB_DRIVER": "sqlite", "DATABASE_PATH": str(tmp_path / "llm-proxy.db")})
    (tmp_path / "llm-proxy.db").chmod(0o644)
    found = done(block(SECURITY, "check"), tmp_path, {"URL": server.url})
    assert found.splitlines()[-1] == "0 1"


def test_commands_of_the_audit_page_show_a_change_and_a_refusal(tmp_path: Path, start_server: StartServer) -> None:
    server = start_server({"DB_DRIVER": "sqlite", "DATABASE_PATH": str(tmp_path / "llm-proxy.db")})
    project = server.manage("POST", "/projects", {"name": "p", "api_key": "sk-1234"})["id"]
    assert server.call("GET", "/manage/projects").status == 401
    env = {"LLM_PROXY_URL": server.url, "MANAGEMENT_TOKEN": MANAGEMENT_TOKEN}
    shown = done(block(AUDIT, "read it").replace("ID ", f"{project} "), tmp_path, env)
    _, created, _, refused = shown.splitlines()
    assert f"createProject  {project}  accepted" in created
    assert refused.endswith("unauthorized")
    assert [line.split(",")[4] for line in (tmp_path / "audit.csv").read_text().splitlines()] == [
        '"operation"',
        '"listProjects"',
        '"createProject"',
        '"createProject"',
    ]


def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    place = unit(tmp_path)
    template = (place / "llm-proxy@.service").read_text()
    assert "llm-proxy server --addr 127.0.0.1:%i --config" in template
    program = shutil.which("systemd-analyze")
    if program is None:
        lacking("no systemd-analyze: install the package systemd")
    (place / "llm-proxy@8081.service").write_text(template)
    (place / "llm-proxy@.service").unlink()
    for path in sorted(place.iterdir()):
        # What is not installed here is not the unit's fault.
        text = (
            path.read_text().replace("/opt/llm-proxy/bin/llm-proxy", "/bin/true").replace("User=llm-proxy", "User=root")
        )
        path.write_text(text)
        ended = subprocess.run([program, "verify", path], capture_output=True, text=True, check=False, timeout=60)
        complaints = [line for line in ended.stderr.splitlines() if "llm-proxy" in line]
        assert (ended.returncode, complaints) == (0, []), ended.stderr
