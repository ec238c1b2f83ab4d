"""The history of the schema: one line of revisions for every database, run by Alembic.

`versions/NNNN_slug.py` are the revisions, numbered without gaps; each imports Alembic and SQLAlchemy alone, so that it
never changes its meaning with `db`. `env.py` is Alembic's entry, `resume` continues an interrupted run on MySQL.
`db.migrate` runs them under a lock.
"""
