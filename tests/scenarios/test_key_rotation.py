"""Keys are replaced while requests go on: encryption keys and API keys. A wrong one stops the start, not requests."""

from __future__ import annotations

import http.client
import os
import re
from pathlib import Path

import trio

from benchmarks.processes import Upstream
from db.database import opened
from db.options import Options
from db.queries import credentials
from llm_proxy.secrets.encryption import KeyRing
from tests.databases.kinds import SERVERS, on
from tests.databases.scratch import Scratch
from tests.harness.deployment import UPSTREAM_KEY, Deployment
from tests.harness.server import ENCRYPTION_KEY, StartServer, loaded

NEW = "bmV3LWxsbS1wcm94eS10ZXN0cy1lbmNyeXB0LWtleSE="
BOTH = f"{NEW},{ENCRYPTION_KEY}"
PROJECTS = 40
#: Projects that use one credential.
SHARING = 20


def rotate(scratch: Scratch, folder: Path) -> str:
    env = {"PATH": os.environ["PATH"], **scratch.env, "ENCRYPTION_KEY": BOTH}
    with (folder / "said").open("wb") as output:
        process = loaded().start(["keys", "rotate"], folder, env, output)
    said = folder / "said"
    assert process.wait(60) == 0, said.read_text()
    return said.read_text()


@on(*SERVERS)
async def test_key_rotation_under_load_fails_no_request(
    migrated_database: Scratch, start_server: StartServer, upstream: Upstream, tmp_path: Path
) -> None:
    seeding = Deployment(start_server(migrated_database.env), upstream)
    secrets = [seeding.new_secret() for _ in range(PROJECTS)]
    assert seeding.server.stop() == 0
    deployment = Deployment(start_server(migrated_database.env, {"ENCRYPTION_KEY": BOTH}), upstream)
    statuses: list[int] = []
    rotated = trio.Event()

    async def hammer(number: int) -> None:
        """At least one request after the end of the rotation, too."""
        last = False
        while not last:
            last = rotated.is_set()
            statuses.extend([(await deployment.chat(secret)).status for secret in secrets[number::8]])

    async with trio.open_nursery() as nursery:
        for number in range(8):
            nursery.start_soon(hammer, number)
        told = await trio.to_thread.run_sync(rotate, migrated_database, tmp_path)
        rotated.set()
    # Each key is stored twice: in its credential, and in the project.
    assert f"re-encrypted  {2 * PROJECTS}" in told
    assert set(statuses) == {http.client.OK}
    assert len(statuses) >= PROJECTS
    assert deployment.server.stop() == 0

    ring = KeyRing.from_setting(NEW)
    with opened(migrated_database.target, Options()) as database:
        for project_id, sealed in database.read_now(credentials.sealed_keys, "projects", "", 1000):
            assert ring.open(sealed, project_id) == UPSTREAM_KEY
    new_only = Deployment(start_server(migrated_database.env, {"ENCRYPTION_KEY": NEW}), upstream)
    assert (await new_only.chat(secrets[0])).status == http.client.OK


@on(*SERVERS)
async def test_one_rotation_under_load_serves_every_project_of_a_credential(
    migrated_database: Scratch, start_server: StartServer, upstream: Upstream
) -> None:
    told, asked = (Deployment(start_server(migrated_database.env), upstream) for _ in range(2))
    manage = told.server.manage
    manage("POST", "/credentials", {"name": "shared", "provider": "openai", "api_key": UPSTREAM_KEY})
    projects = [manage("POST", "/projects", {"name": f"{n}", "credentials": ["shared"]}) for n in range(SHARING)]
    secrets = [told.new_secret(project["id"]) for project in projects]
    statuses: list[int] = []
    rotated = trio.Event()

    async def hammer(number: int) -> None:
        while not rotated.is_set():
            statuses.extend([(await asked.chat(secret)).status for secret in secrets[number::4]])

    async with trio.open_nursery() as nursery:
        for number in range(4):
            nursery.start_soon(hammer, number)
        for _ in range(5):
            # The provider accepts one key: each rotation seals it again, for every project.
            await trio.to_thread.run_sync(manage, "POST", "/credentials/shared/rotate", {"api_key": UPSTREAM_KEY})
        rotated.set()
    assert set(statuses) == {http.client.OK}
    assert len(statuses) >= SHARING

    manage("POST", "/credentials/shared/rotate", {"api_key": "sk-not-accepted"})
    for secret in secrets:
        refused = await asked.chat(secret)
        assert (refused.status, refused.json()["error"]["code"]) == (http.client.UNAUTHORIZED, "invalid_api_key")


def test_a_wrong_encryption_key_is_reported_at_the_start(
    migrated_database: Scratch, start_server: StartServer, upstream: Upstream
) -> None:
    seeding = Deployment(start_server(migrated_database.env), upstream)
    seeding.new_project()
    assert seeding.server.stop() == 0
    server = start_server(migrated_database.env, {"ENCRYPTION_KEY": NEW}, ready=False)
    assert server.wait(60) == 1
    kid = KeyRing.from_setting(ENCRYPTION_KEY).key_ids[0]
    (line,) = [line for line in server.output.splitlines() if line.startswith("error:")]
    assert line == (
        f"error: 2 of 2 stored API keys need the key with the id {kid} (2): "
        "ENCRYPTION_KEY is not the one that this database was used with"
    )


async def test_a_missing_encryption_key_is_reported_and_other_projects_are_served(
    migrated_database: Scratch, start_server: StartServer, upstream: Upstream
) -> None:
    seeding = Deployment(start_server(migrated_database.env), upstream)
    seeding.new_project()
    assert seeding.server.stop() == 0
    both = Deployment(start_server(migrated_database.env, {"ENCRYPTION_KEY": BOTH}), upstream)
    secret = both.new_secret(both.new_project(name="under the new key")["id"])
    assert both.server.stop() == 0
    new_only = Deployment(start_server(migrated_database.env, {"ENCRYPTION_KEY": NEW}), upstream)
    assert (await new_only.chat(secret)).status == http.client.OK
    (event,) = [event for event in new_only.server.events if event["event"] == "some projects cannot be served"]
    assert re.match(r"\d of \d stored API keys need the key with the id ", event["reason"])
