"""Checks of the database.

- `readiness`: the answer of `/ready`
- `database_collector`: the metrics of the database
- `startup_checks`: the checks before a server serves
- `single_flight`: one query for all requests that wait for it
"""
