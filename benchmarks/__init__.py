"""Measuring LLM Proxy, and the processes that measuring needs.

    __main__    python -m benchmarks …: runs parts, prints what they found, checks the targets
    findings    the results of every part
    targets     the performance targets of the project, each with its reason
    report      findings as Markdown, JSON and SVG; plots draws them, page.md is the page around them
    machine     describes the machine

    cpu         CPU time per request, as a ratio to a bare application on stock Hypercorn
    throughput  capacity, with one worker, two, and two instances
    sqlite      the upper bound of SQLite, on a fast disk and on a slow one
    latency     added latency, over the upstream called directly
    streaming   streams: first byte, cost of a chunk, how many are held
    growth      cost as ledger, tokens, connections and bodies grow
    memory      memory after many requests
    peers       other gateways, on the same upstream

    rig         common to all parts: their input, upstream, proxy, load, and the check of the ledger
    databases   the databases to measure on
    upstream    a scripted provider as a separate process, cheap enough not to be the bottleneck; records its requests
    load        a load generator as a separate process
    hello       the bare ASGI application that the proxy is compared with
    proxy       the real server as a process
    processes   handles: start a process, wait for its line, read its CPU time, stop it

Results go to the terminal and to `benchmarks/results/`.
"""
