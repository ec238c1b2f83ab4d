"""The writer: admission and settlement of requests, many at a time, in shared database transactions.

One task per worker process owns all writing. Requests that want to be admitted queue up, and so do the settlements of
requests that ended; when a transaction ends, everything that is queued goes into the next one (group commit). The
busier the proxy, the larger the batches and the cheaper each request.

Admission is answered only after its commit, from what that transaction read: there is no cache of tokens, so a token
that was revoked anywhere is dead at its next request everywhere. Settlement is a synchronous append to the queue, so
that leaving a request never waits for the database.

While the database is away, admissions are refused at once, settlements are kept in memory (bounded) and written when it
is back. Where a commit's fate is unknown, its admissions are refused, and given back if they turn out to exist.

If the outage mode is enabled (`outage`), it is called instead of the ledger, and admits for a while without the
database.

- `writer`: the ledger of one worker
- `batch`, `transaction`: the requests and settlements of one transaction, and the function that runs it
- `lookup`: what running requests read beside it
- `waiting`: requests that wait until running ones have ended
- `locked`: requests whose rows another transaction has locked
- `limits`: limits, judged and counted
- `isolation`: objects at a provider that a project may reach
- `label_values`: the labels that the sums distinguish
- `late`: usage that comes after its request has ended
- `refusals`: records refused requests
- `prune`: retention, and daily sums
"""

from __future__ import annotations

from llm_proxy.ledger.isolation import Named
from llm_proxy.ledger.late import ObjectUsage
from llm_proxy.ledger.transaction import AdmissionRequest, Checked, Grant, Objects, Settlement, book_late
from llm_proxy.ledger.writer import Ledger

__all__ = [
    "AdmissionRequest",
    "Checked",
    "Grant",
    "Ledger",
    "Named",
    "ObjectUsage",
    "Objects",
    "Settlement",
    "book_late",
]
