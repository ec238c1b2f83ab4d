"""Measuring LLM Proxy, and the processes that measuring needs.

    upstream    a scripted provider as its own process, cheap enough not to be the bottleneck; records what it got
    load        a closed-loop load generator as its own process
    processes   handles: start a process, wait for its line, read its CPU time, stop it
    hello       the bare ASGI application that the proxy is compared with
    cpu         CPU time per request, as a ratio to that
    __main__    python -m benchmarks …

Results go to the terminal and to `benchmarks/results/`.
"""
