"""Objects that a provider keeps, such as files and batches: which request creates, names or lists them.

- `table`: one row for each endpoint
- `references`: the ids in a request body
- `answers`: the ids in an answer, as it passes
- `request`: what one request names, lists, creates and deletes

What a project may reach is decided in the transaction that admits its request: `llm_proxy/ledger/isolation.py`.
"""
