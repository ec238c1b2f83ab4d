"""Other gateways side by side with LLM Proxy, on the same upstream and the same load in the same run.

    installing    puts LiteLLM and Portkey into a cache folder, once
    contender     a running gateway, LLM Proxy and the bare upstream among them, with its samples and features
    litellm       LiteLLM's proxy, without its database
    portkey       Portkey's gateway, without keys
    go_llm_proxy  llm-proxy in Go, if GO_LLM_PROXY_SOURCE is the folder of its source
    gomodel       GoModel, if GOMODEL_PROGRAM is the path of its program
    nginx         nginx as a plain reverse proxy: about as little work as a proxy can do
    measurement   the rounds
    chapter       tables, plots and checks

Each gateway gets one worker process on loopback, and the settings that its makers recommend for production.
"""

from __future__ import annotations

from benchmarks.peers.measurement import run

__all__ = ["run"]
