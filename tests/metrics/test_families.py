from __future__ import annotations

import re
from itertools import chain

from llm_proxy.metrics.families import SECTIONS
from tests.databases.kinds import on
from tests.harness.deployment import Deployment

DECLARED = {
    f"{family.name}_total" if family.kind == "counter" else family.name: family
    for family in chain.from_iterable(SECTIONS.values())
}


@on("sqlite", "postgres", "mysql", "mariadb")
async def test_a_server_shows_what_is_declared_and_nothing_else(deployment: Deployment) -> None:
    await deployment.chat(deployment.new_secret())
    text = str(deployment.server.call("GET", "/metrics").content)
    kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
    wanted = {name: family.kind for name, family in DECLARED.items()}
    if deployment.server.settings["DB_DRIVER"] != "sqlite":
        wanted = {name: kind for name, kind in wanted.items() if "_sqlite_" not in name}
    assert kinds == wanted
    for found in re.finditer(r"^(\w+)\{(.*)\} ", text, re.MULTILINE):
        name = next(name for name in DECLARED if re.fullmatch(rf"{name}(_bucket|_sum|_count)?", found[1]))
        labels = {label.name for label in DECLARED[name].labels}
        assert {label for label, _ in re.findall(r'(\w+)="([^"]*)"', found[2])} - {"le"} == labels
