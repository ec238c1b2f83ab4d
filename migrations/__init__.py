"""The history of the schema: one line of revisions for every database, run by Alembic.

`versions/NNNN_slug.py` are the revisions, numbered without gaps; each imports Alembic and SQLAlchemy alone, so that it
means the same for ever, whatever becomes of `db`. `env.py` is Alembic's entry, `resume` makes a run on MySQL that was
cut off go on. What runs them, under which lock, is `db.migrate`.
"""
