"""Reverse proxies with the configurations of reverse-proxy.md: requests, streams, and access to management paths.

Two of the three servers of the page are away. A fleet behind nginx that is restarted is in test_fleet.py.
"""

from __future__ import annotations

import http.client
import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from benchmarks.ports import free_port
from tests.databases.fixtures import lacking
from tests.databases.kinds import on
from tests.docs.blocks import block
from tests.docs.prompt import done
from tests.harness import client
from tests.harness.balancers import ADVICE, BALANCERS, PORTS, Balancer, find_balancer, running_balancer
from tests.harness.deployment import Deployment, chat_body, chat_headers
from tests.harness.nginx import ADVICE as NGINX_ADVICE
from tests.harness.nginx import find_nginx, running_nginx
from tests.harness.server import MANAGEMENT_TOKEN, ROOT
from tests.scenarios.evasions import ask, evasions

PAGE = ROOT / "docs" / "deployment" / "reverse-proxy.md"


def nginx(folder: Path, ports: tuple[int, ...], stack: ExitStack) -> Balancer:
    """An nginx that knows nobody until the page's own commands have put servers in."""
    program = find_nginx()
    if program is None:
        lacking(NGINX_ADVICE)
    found = stack.enter_context(running_nginx(program, folder, free_port()))
    script = block(PAGE, "replicas of nginx").replace("/etc/nginx/llm-proxy", str(found.replicas))
    for there, here in zip(PORTS, ports, strict=True):
        assert str(there) in script
        script = script.replace(str(there), str(here))
    done(script, folder, {"PATH": f"{folder}:/usr/bin:/bin"})
    assert len(list(found.replicas.iterdir())) == 1 + len(ports)
    return Balancer(found.url, found.tls)


@pytest.fixture(params=["nginx", *BALANCERS])
def balancer(request: pytest.FixtureRequest, deployment: Deployment, tmp_path: Path) -> Iterator[Balancer]:
    ports = (deployment.server.port, free_port(), free_port())
    with ExitStack() as stack:
        if request.param == "nginx":
            yield nginx(tmp_path, ports, stack)
            return
        program = find_balancer(request.param)
        if program is None:
            lacking(ADVICE)
        yield stack.enter_context(running_balancer(request.param, program, tmp_path, *ports))


def manage(balancer: Balancer, address: str) -> int:
    """The response to a request for projects from this address, with the right token."""
    place = urlsplit(balancer.url)
    source = (address, 0)
    connection = http.client.HTTPSConnection(
        str(place.hostname), place.port, context=balancer.tls, timeout=30, source_address=source
    )
    try:
        connection.request("GET", "/manage/projects", headers={"Authorization": f"Bearer {MANAGEMENT_TOKEN}"})
        return connection.getresponse().status
    finally:
        connection.close()


@on("sqlite")
async def test_requests_and_streams_pass_through_reverse_proxies(deployment: Deployment, balancer: Balancer) -> None:
    headers = chat_headers(deployment.new_secret(), ("Host", urlsplit(balancer.url).netloc))
    for stream, ending in ((False, b"}"), (True, b"data: [DONE]"), (False, b"}"), (True, b"data: [DONE]")):
        answer = await client.exchange(
            balancer.url, "POST", "/v1/chat/completions", headers, chat_body(stream=stream), balancer.tls
        )
        assert (answer.status, answer.complete) == (200, True), answer.body
        assert answer.body.rstrip().endswith(ending), answer.body
    assert manage(balancer, "127.0.0.1") == 200
    if sys.platform == "linux":  # where all of 127.0.0.0/8 is this machine's
        assert manage(balancer, "127.0.0.2") == 403


@on("sqlite")
@pytest.mark.skipif(sys.platform != "linux", reason="only there all of 127.0.0.0/8 is this machine's")
@pytest.mark.parametrize(("path", "content"), [("/manage/projects", b'"next_cursor"'), ("/metrics", b"# HELP")])
def test_reverse_proxies_block_management_paths_from_outside(balancer: Balancer, path: str, content: bytes) -> None:
    requests = evasions(path, urlsplit(balancer.url).netloc)
    assert content in ask(balancer, "127.0.0.1", requests[0])
    reached = {}
    for request in requests:
        answer = ask(balancer, "127.0.0.2", request)
        # Caddy answers 200 without content where the request is for another site.
        good = re.search(rb"^HTTP/1\.[01] [23]..(?s:.*)\r\ncontent-type:", answer, re.MULTILINE | re.IGNORECASE)
        if good or content in answer:
            reached[request] = answer
    assert reached == {}
