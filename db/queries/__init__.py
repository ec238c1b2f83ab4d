"""The queries of the program, one file per subject.

Functions take a `Connection` inside a transaction and return records. They neither commit nor know which database
they are talking to.

- `credentials`, `projects`, `tokens`: changed by the management API
- `ledger`: admission, settlement, heartbeats, the sweep, and the proof
- `pruning`: retention of the ledger
- `repair`: repair of a ledger that does not add up
- `requests`: the ledger's rows, listed
- `tables`: whole tables, for copies
- `rows`: between rows and records
"""
