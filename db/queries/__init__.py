"""The queries of the program, one file per subject.

Functions take a `Connection` inside a transaction and return records. They neither commit nor know which database
they are talking to.

- `credentials`, `projects`, `tokens`, `limits`: changed by the management API
- `ledger`: admission, settlement, heartbeats, and the sweep
- `counters`: what limits have counted
- `objects`: which project created an object at a provider
- `daily`: daily sums
- `label_values`: the values of labels that the sums distinguish
- `proof`, `repair`: whether a ledger adds up, and the repair of one that does not
- `pruning`: retention of the ledger
- `requests`, `refusals`, `audit`: rows of these tables, listed
- `usage`: reports
- `tables`: whole tables, for copies
- `rows`: between rows and records
"""
