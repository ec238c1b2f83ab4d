"""Short-lived tokens, one per credential: exchanged when needed, kept until shortly before they end."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import trio
from attrs import define, field, frozen

from llm_proxy.errors import CredentialNotExchanged
from llm_proxy.logging import log

#: Seconds that an exchange may take. The clients inside have shorter timeouts; this one is for what they forget.
EXCHANGE_TIMEOUT: Final = 30.0
#: A token is refreshed when this part of its life is over, or these seconds before its end, whichever is later.
_REFRESH_PART: Final = 0.8
_REFRESH_BEFORE: Final = 300.0
#: Seconds until a failed refresh is tried again, while the old token is still valid.
_RETRY: Final = 10.0
#: Maximum number of credentials that a source remembers: they rotate, and the old ones never come back.
_MAX_ENTRIES: Final = 1000
#: Maximum number of threads that exchange at once, of one source.
_MAX_THREADS: Final = 8


class ExchangeFailed(Exception):
    """A credential could not be exchanged; the message says why, without a secret and without a path."""


@frozen
class AccessToken:
    """The result of an exchange: a token, and the seconds for which it is valid from now on."""

    value: str = field(repr=False)
    lifetime: float


@define(eq=False)
class _PendingToken:
    """An exchange that has started; when it is done, there is a value or a failure."""

    done: trio.Event = field(factory=trio.Event)
    value: str = field(default="", repr=False)
    failure: str = ""


@define(eq=False)
class _Entry:
    """What is known of one credential; times are trio's."""

    value: str = field(default="", repr=False)
    refresh_at: float = -math.inf
    expires_at: float = -math.inf
    running: _PendingToken | None = None


class TokenSource:
    """Gives the tokens of credentials of one kind.

    There is one exchange per credential at a time, and all callers share its result. It belongs to none of them, so it
    runs as a system task: a caller that is cancelled cancels nothing.
    """

    def __init__(self, auth: str, exchange: Callable[[str], AccessToken]) -> None:
        """Take a function that exchanges a credential's secret; it blocks, and raises `ExchangeFailed`."""
        self._auth = auth
        self._function = exchange
        self._entries: dict[str, _Entry] = {}
        self._limiter = trio.CapacityLimiter(_MAX_THREADS)
        self._events = log.logger("auth")

    async def token(self, secret: str) -> str:
        """The token of a credential, at once if there is a valid one.

        Raises `CredentialNotExchanged` if there is none, and the exchange fails.
        """
        entry = self._entries.get(secret)
        if entry is None:
            if len(self._entries) >= _MAX_ENTRIES:
                del self._entries[next(iter(self._entries))]
            entry = self._entries[secret] = _Entry()
        now = trio.current_time()
        valid = now < entry.expires_at
        exchange = entry.running
        if exchange is None and not (valid and now < entry.refresh_at):
            exchange = entry.running = _PendingToken()
            trio.lowlevel.spawn_system_task(self._run, secret, entry, exchange)
        if valid or exchange is None:
            return entry.value
        await exchange.done.wait()
        if exchange.failure:
            raise CredentialNotExchanged(
                f"The provider's credential could not be exchanged for a token: {exchange.failure}. "
                "Nothing was sent to the provider."
            )
        return exchange.value

    def drop(self, secret: str, token: str) -> None:
        """Forget a token that the provider has refused, unless there is a newer one."""
        entry = self._entries.get(secret)
        if entry is not None and entry.value == token:
            entry.refresh_at = entry.expires_at = -math.inf

    async def _run(self, secret: str, entry: _Entry, exchange: _PendingToken) -> None:
        began = trio.current_time()
        try:
            with trio.fail_after(EXCHANGE_TIMEOUT):
                found = await trio.to_thread.run_sync(
                    self._function, secret, abandon_on_cancel=True, limiter=self._limiter
                )
            exchange.value = entry.value = found.value
            entry.expires_at = began + found.lifetime
            entry.refresh_at = began + max(_REFRESH_PART * found.lifetime, found.lifetime - _REFRESH_BEFORE)
        except trio.TooSlowError:
            exchange.failure = f"there was no answer within {EXCHANGE_TIMEOUT:.0f} s"
        except ExchangeFailed as error:
            exchange.failure = str(error)
        except Exception as error:  # noqa: BLE001 - whatever a vendor's library raises is a failed exchange
            # Its message may contain a secret.
            exchange.failure = f"there was an unexpected error ({type(error).__name__})"
        finally:
            if exchange.failure:
                entry.refresh_at = trio.current_time() + _RETRY
                self._events.warning("a credential could not be exchanged", auth=self._auth, why=exchange.failure)
            entry.running = None
            exchange.done.set()
