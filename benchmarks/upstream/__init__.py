"""A scripted provider as its own process: `python -m benchmarks.upstream --port 0` prints its address as JSON.

    journal     what it remembers of each request, the counts, and the log file
    rendering   replies of `tests.scripted` as bytes on the wire, rendered once
    faults      answers that no sane server gives, byte by byte
    control     `/__counts`, `/__requests`, `/__reset`, `/__hold`, `/__release`, `/__wait`
    connection  the listener and its connections: llhttp over non-blocking sockets

It speaks plain HTTP/1.1. Requests may carry the directions of `tests.scripted.directions` (`x-scripted-status`,
`-delay`, `-gap`, `-chunks`, `-abort`, `-echo`), and `x-upstream-fault` with a name from `faults`.
"""
