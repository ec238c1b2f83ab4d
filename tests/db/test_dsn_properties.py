"""What holds for every DSN, whatever is in it."""

from __future__ import annotations

import string
from contextlib import suppress
from urllib.parse import quote

from hypothesis import assume, example, given
from hypothesis import strategies as st

from db.dsn import Target, parse
from db.errors import BadDsn
from tests.db.dsn_rendering import go_form, mysql_targets, mysql_url, passwords, postgres_targets, postgres_url, text

SCHEMES = ("postgres", "postgresql", "mysql", "mariadb", "sqlite")

#: Something to look for in messages, in the middle of whatever else a password may hold.
secrets = st.tuples(passwords, passwords).map("s3cret".join)
names = st.text(string.ascii_lowercase, min_size=1, max_size=8)
urls = st.sampled_from(
    (
        "postgres://{user}:{password}@{host}/{database}",
        "postgres://{user}:{password}@{host}:5432/{database}?sslmode=require",
        "postgres://{user}:{password}@{host}/{database}?unknown=1",
        "postgres://{user}:{password}@{host}:x/{database}",
        "postgres://{user}:{password}@{host},{host}/{database}",
        "postgres://{user}:{password}@{host}",
        "postgres://{user}:{password}",
        "postgres://{user}:?{password}=1&{password}=2",
        "postgres://:{password}@/",
        "mysql://{user}:{password}@{host}/{database}?tls=true",
        "{user}:{password}@tcp({host}:3306)/{database}?parseTime=true",
        "{user}:{password}@tcp({host}:3306)/{database}?unknown=1",
        "{user}:{password}@tcp({host}:3306)",
        "{user}:{password}@{host}",
        "mysql://{user}:{password}@tcp({host})/{database}",
        "{user}:{password}@unix(/{host})/{database}?tls=maybe",
        "{user}:{password}@tcp({host}:3306)/{database}?ssl-ca=/{host}/ca.pem",
        "postgres://{user}:{password}@/{database}?host=/{host}&port=x",
        "postgres://{user}@{host}/{database}?password={password}",
    )
)


@given(form=urls, user=names, password=secrets, host=names, database=names, encoded=st.booleans())
@example(
    form="postgres://{user}:{password}@{host}", user="u", password="?s3cret=1&", host="h", database="d", encoded=False
)
@example(form="{user}:{password}@{host}", user="u", password="/x?s3cret=1", host="h", database="d", encoded=False)
@example(form="postgres://{user}:{password}", user="u", password="?s3cret=x", host="h", database="d", encoded=False)
@example(
    form="postgres://{user}:?{password}=1&{password}=2",
    user="u",
    password="s3cret",
    host="h",
    database="d",
    encoded=False,
)
def test_no_password_is_ever_shown(
    form: str, user: str, password: str, host: str, database: str, encoded: bool
) -> None:
    written = quote(password, safe="") if encoded else password
    url = form.format(user=user, password=written, host=host, database=database)
    try:
        target = parse(None, url, None)
    except BadDsn as error:
        shown = f"{error} {error!r} {error.__cause__!r}"
    else:
        assume(target.driver != "sqlite")
        shown = f"{target} {target!r}"
    assert "s3cret" not in shown


@given(postgres_targets())
def test_a_postgres_url_reads_back(target: Target) -> None:
    assert parse("postgres", postgres_url(target), None) == target
    assert parse(None, postgres_url(target), "./data/llm-proxy.db") == target


@given(mysql_targets(users=text.filter(bool)))
def test_a_mysql_url_reads_back(target: Target) -> None:
    assert parse("mysql", mysql_url(target), None) == target
    assert parse(None, mysql_url(target), None) == target


#: Nothing of them is decoded, so that a colon would end them; and a line may be indented.
go_users = st.text(st.characters(exclude_categories=["Cs", "Z", "C"], exclude_characters=":"), min_size=1, max_size=12)


@given(mysql_targets(users=go_users))
@example(Target("mysql", host="h", port=1, user="admin", password="//s3cret", database="d"))
@example(Target("mysql", host="h", port=1, user="admin@server", password="://@/?x=1", database="d"))
def test_a_go_form_reads_back_whatever_the_password(target: Target) -> None:
    # With two slashes behind it, the name of a scheme is one.
    assume(not (target.user.lower().partition("+")[0] in SCHEMES and target.password.startswith("//")))
    assume(target.user.lower() != "sqlite")
    assert parse("mysql", go_form(target), None) == target
    assert parse(None, go_form(target), None) == target


#: What strings of this kind are made of.
PIECES = [
    "postgres://",
    "mysql://",
    "sqlite:",
    ":",
    "@",
    "/",
    "//",
    "?",
    "#",
    "&",
    "=",
    ",",
    "[",
    "]",
    "(",
    ")",
    "%",
    "%zz",
    "%00",
    "\x00",
    "tcp(",
    "unix(",
    "localhost",
    "::1",
    "5432",
    "u",
    "d",
    "sslmode",
    "require",
    "tls",
    "timeout",
    "host",
    "port",
    "connect_timeout",
    "1h",
    "-1",
    "\ud800",
    "€",
]
pieces = st.sampled_from([*PIECES, " ", "\n"])


@given(st.text() | st.lists(pieces, max_size=24).map("".join))
def test_anything_else_is_refused(url: str) -> None:
    for driver in ("postgres", "mysql", "sqlite", None):
        with suppress(BadDsn):
            parse(driver, url, url)
