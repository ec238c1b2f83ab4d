"""The providers that requests go to, with the connections to them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from ssl import SSLContext
from typing import Self

from attrs import frozen

from llm_proxy.config import SettingsError
from llm_proxy.gateway.providers.provider import Provider, Providers
from llm_proxy.gateway.upstream.outbound_proxy import outbound_proxy
from llm_proxy.gateway.upstream.pool import UpstreamPool
from llm_proxy.net.tls import client_context


@frozen(eq=False)
class Routing:
    """The configured providers, and the connections to each. A request uses one routing from its start to its end."""

    providers: Providers
    upstreams: Mapping[str, UpstreamPool]

    @classmethod
    def open(cls, providers: Providers, former: Self | None = None) -> Self:
        """Open the connections to providers, or take over those of a former routing that are made in the same way.

        Raises `SettingsError` if the environment names an outbound proxy that cannot be used.
        """
        upstreams: dict[str, UpstreamPool] = {}
        # Making a context takes about ten milliseconds, and most of the built-in providers are never used.
        context = client_context()
        for name, provider in providers.by_name.items():
            old = None if former is None else former.providers.by_name.get(name)
            if former is not None and old is not None and old.connection_settings == provider.connection_settings:
                upstreams[name] = former.upstreams[name]
            else:
                upstreams[name] = _open_upstream(provider, context)
        return cls(providers, upstreams)

    def close(self, following: Self | None = None) -> None:
        """Close the idle connections that a following routing does not use; those in use close after their request."""
        for name, upstream in self.upstreams.items():
            if following is None or following.upstreams.get(name) is not upstream:
                upstream.close()


def _open_upstream(provider: Provider, context: SSLContext) -> UpstreamPool:
    try:
        return UpstreamPool(
            provider.origin,
            provider.timeouts,
            max_idle=provider.max_idle_conns_per_host,
            keep_alive=provider.keep_alive,
            proxy=outbound_proxy(provider.origin, os.environ),
            ssl_context=context,
        )
    except ValueError as error:
        # The message names the environment variable of an outbound proxy.
        raise SettingsError([str(error)]) from error
