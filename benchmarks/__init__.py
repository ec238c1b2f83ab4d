"""Measuring LLM Proxy, and the processes that measuring needs.

    __main__    python -m benchmarks …: runs parts, prints what they found, checks the targets
    bench       what every part is given; findings: what every part gives back
    targets     the bounds that the project promises, each with its reason
    report      findings as Markdown, JSON and SVG; plots draws them, page.md is the page around them
    machine     on what it was measured

    cpu         CPU time per request, as a ratio to a bare application on stock Hypercorn
    throughput  capacity, with one worker, two, and two instances
    sqlite      the upper bound of SQLite, on a fast disk and on a slow one
    latency     added latency, over the upstream called directly
    streaming   streams: first byte, cost of a chunk, how many are held
    growth      cost as ledger, tokens, connections and bodies grow
    memory      memory after many requests
    peers       other gateways, on the same upstream

    rig         what parts have in common: upstream, proxy, load, and the check of the books
    databases   the databases to measure on
    upstream    a scripted provider as its own process, cheap enough not to be the bottleneck; records what it got
    load        a load generator as its own process
    hello       the bare ASGI application that the proxy is compared with
    proxy       the real server as a process
    processes   handles: start a process, wait for its line, read its CPU time, stop it

Results go to the terminal and to `benchmarks/results/`.
"""
