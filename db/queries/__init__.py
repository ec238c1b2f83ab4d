"""What the program asks of the database, one file per subject.

Functions take a `Connection` inside a transaction and return records. They neither commit nor know which database
they are talking to.

- `projects`, `tokens`: what the control plane changes
- `ledger`: admission, settlement, heartbeats, the sweep, and the proof
- `pruning`: old rows of the ledger go
- `repair`: the ledger is mended where it does not balance
- `requests`: the ledger's rows, listed
- `tables`: whole tables, for copies
- `rows`: between rows and records
"""
