from __future__ import annotations

import hmac

import pytest
import trio
import trio.testing

from llm_proxy.manage import auth
from llm_proxy.manage.auth import Guard
from llm_proxy.manage.problems import TooManyAttempts, Unauthorized
from tests.manage.conftest import MANAGEMENT_TOKEN, Api

RIGHT = ["Bearer right-token"]
WRONG = ["Bearer wrong-token"]
HERE, THERE = "192.0.2.1", "198.51.100.7"


@pytest.fixture
def guard() -> Guard:
    return Guard("right-token")


async def refused(guard: Guard, address: str = HERE, times: int = 1) -> None:
    for _ in range(times):
        with pytest.raises(Unauthorized):
            await guard.admit(address, WRONG)


@pytest.mark.parametrize(
    "authorization",
    [["Bearer right-token"], ["bearer right-token"], ["BEARER   right-token "]],
)
async def test_the_right_token_opens(guard: Guard, authorization: list[str]) -> None:
    await guard.admit(HERE, authorization)


@pytest.mark.parametrize(
    ("authorization", "description"),
    [
        ([], Unauthorized.usual),
        ([""], Unauthorized.usual),
        (["Bearer"], Unauthorized.usual),
        (["Bearer "], Unauthorized.usual),
        (["right-token"], Unauthorized.usual),
        (["Basic right-token"], Unauthorized.usual),
        (["Bearer right-token", "Bearer right-token"], Unauthorized.usual),
        (["Bearer right-toke"], "The management token is wrong."),
        (["Bearer right-tokens"], "The management token is wrong."),
        (["Bearer Right-token"], "The management token is wrong."),
        (["Bearer right-token, Bearer right-token"], "The management token is wrong."),
        (["Bearer r\xefght-\ud800"], "The management token is wrong."),
    ],
)
async def test_anything_else_does_not(guard: Guard, authorization: list[str], description: str) -> None:
    with pytest.raises(Unauthorized) as refusal:
        await guard.admit(HERE, authorization)
    assert refusal.value.description == description


@pytest.mark.parametrize("authorization", [[], [""], ["Bearer"], ["Bearer "], ["Bearer \xa0"], ["Bearer x"]])
async def test_where_no_token_is_set_nothing_opens(authorization: list[str]) -> None:
    with pytest.raises(Unauthorized):
        await Guard("").admit(HERE, authorization)


async def test_tokens_are_compared_in_constant_time(guard: Guard, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return False

    monkeypatch.setattr(hmac, "compare_digest", compare)
    for token in ("r", "right-token", "x" * 1000):
        with pytest.raises(Unauthorized):
            await guard.admit(HERE, [f"Bearer {token}"])
    assert {len(side) for sides in compared for side in sides} == {32}, "of one length, whatever was guessed"
    assert len(compared) == 3


async def test_a_guesser_is_refused_unseen(guard: Guard, autojump_clock: trio.testing.MockClock) -> None:
    await refused(guard, times=auth.ATTEMPTS)
    for authorization in (WRONG, RIGHT):
        with pytest.raises(TooManyAttempts) as refusal:
            await guard.admit(HERE, authorization)
        assert refusal.value.headers == {"Retry-After": "6"}
    await guard.admit(THERE, RIGHT)
    await trio.sleep(4.5)
    with pytest.raises(TooManyAttempts) as refusal:
        await guard.admit(HERE, WRONG)
    assert refusal.value.headers == {"Retry-After": "2"}
    await trio.sleep(1.5)
    await refused(guard)
    with pytest.raises(TooManyAttempts):
        await guard.admit(HERE, RIGHT)


async def test_attempts_come_back_up_to_their_number(guard: Guard, autojump_clock: trio.testing.MockClock) -> None:
    await refused(guard, times=auth.ATTEMPTS)
    await trio.sleep(100 * auth.ATTEMPTS * auth.ATTEMPT_INTERVAL)
    await refused(guard, times=auth.ATTEMPTS)
    with pytest.raises(TooManyAttempts):
        await guard.admit(HERE, WRONG)


async def test_whoever_shares_an_address_with_a_guesser_is_not_locked_out(
    guard: Guard, autojump_clock: trio.testing.MockClock
) -> None:
    await guard.admit(HERE, RIGHT)
    await refused(guard, times=auth.ATTEMPTS)
    before = trio.current_time()
    await guard.admit(HERE, RIGHT)
    assert trio.current_time() == before
    await refused(guard)
    assert trio.current_time() == before + auth.SLOWNESS, "but the guesser waits"
    await trio.sleep(auth.KNOWN_FOR + 1)
    await refused(guard, times=auth.ATTEMPTS)
    with pytest.raises(TooManyAttempts):
        await guard.admit(HERE, RIGHT)


async def test_a_missing_token_is_no_guess(guard: Guard) -> None:
    for _ in range(3 * auth.ATTEMPTS):
        with pytest.raises(Unauthorized):
            await guard.admit(HERE, [])
    await guard.admit(HERE, RIGHT)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("fe80::1%eth0", "fe80::2%eth1", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("", "unix", False),
    ],
)
async def test_one_client_is_one_address_or_one_ipv6_network(guard: Guard, one: str, other: str, same: bool) -> None:
    await refused(guard, one, times=auth.ATTEMPTS)
    if same:
        with pytest.raises(TooManyAttempts):
            await guard.admit(other, RIGHT)
    else:
        await guard.admit(other, RIGHT)


async def test_the_memory_of_addresses_is_bounded(guard: Guard) -> None:
    for n in range(auth._ADDRESSES + 100):
        await refused(guard, f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}")
    assert len(guard._records) == auth._ADDRESSES


async def test_every_route_of_the_api_is_behind_the_token(api: Api) -> None:
    rules = [rule.rule for rule in api.app.url_map.iter_rules() if rule.rule.startswith("/manage")]
    assert len(rules) >= 9
    identity = "6f1b4a52-8a39-4c0e-9d0e-6c1f7d1f3b11"
    for rule in rules:
        path = rule.replace("<project_id>", identity).replace("<token_id>", identity).replace("<path:rest>", "x")
        for method in ("GET", "POST", "PATCH", "PUT", "DELETE", "OPTIONS"):
            reply = await api(method, path, {}, token=None)
            assert (reply.status, reply.json) == (
                401,
                {
                    "error": "The management API needs the management token",
                    "code": "unauthorized",
                    "description": Unauthorized.usual,
                },
            )
            assert reply.headers["WWW-Authenticate"] == 'Bearer realm="llm-proxy management"'


async def test_guessing_over_http(api: Api, autojump_clock: trio.testing.MockClock) -> None:
    for _ in range(auth.ATTEMPTS):
        reply = await api("GET", "/manage/projects", token="guess")
        assert (reply.status, reply.json["description"]) == (401, "The management token is wrong.")
    reply = await api("GET", "/manage/projects", token=MANAGEMENT_TOKEN)
    assert (reply.status, reply.headers["Retry-After"]) == (429, "6")
    assert reply.json == {
        "error": "Too many wrong management tokens",
        "code": "too_many_attempts",
        "description": "Try again in 6 s, with the right one.",
    }
    assert (await api("GET", "/manage/projects", address=THERE)).status == 200


def test_a_guard_never_shows_its_token() -> None:
    guard = Guard("right-token")
    assert "right-token" not in f"{guard!r}{guard.__dict__}"
