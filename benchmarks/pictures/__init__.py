"""The recorded pictures of docs/architecture: what a running proxy did, written down and drawn.

`python -m benchmarks.pictures record` runs proxies and leaves what it saw beside this file, `draw` makes the pictures
of it. `batches` is about shared transactions (`journal` writes them down inside the server), `roll_out` about three
servers behind nginx. `look` is what both have in common with the plots of the benchmarks.
"""
