"""Targets written down, in both shapes, by another hand than the one that reads them."""

from __future__ import annotations

import string
from pathlib import Path
from urllib.parse import quote, urlencode

from hypothesis import strategies as st

from db.dsn.target import Target, Tls

_SSLMODES = {
    Tls.OFF: "disable",
    Tls.ALLOWED: "allow",
    Tls.PREFERRED: "prefer",
    Tls.REQUIRED: "require",
    Tls.VERIFY_CA: "verify-ca",
    Tls.VERIFY_FULL: "verify-full",
}
_GO_TLS = {
    Tls.OFF: "tls=false",
    Tls.PREFERRED: "tls=preferred",
    Tls.REQUIRED: "tls=skip-verify",
    Tls.VERIFY_CA: "ssl-mode=VERIFY_CA",
    Tls.VERIFY_FULL: "tls=true",
    Tls.CUSTOM: "tls=custom",
}

text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
#: Passwords that are hard to tell from the text around them, and any others.
passwords = text | st.text("@:/?#[]%&=+ ()'\"\\,;äp1", max_size=12)
_labels = st.text(string.ascii_letters + string.digits + "-_", min_size=1, max_size=12)
_names = st.lists(_labels, min_size=1, max_size=3).map(".".join)
_hosts = _names | st.ip_addresses().map(str)
_databases = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0/"), min_size=1, max_size=12)
_folders = st.lists(st.text(string.ascii_lowercase + ":-.", min_size=1, max_size=8), min_size=1, max_size=3).map(
    lambda parts: "/" + "/".join(parts)
)
_files = st.none() | st.text("/abc .%&@", min_size=1, max_size=8).map(Path)
_ports = st.integers(1, 65535)


@st.composite
def postgres_targets(draw: st.DrawFn) -> Target:
    """Whatever a URL can say about PostgreSQL."""
    port = draw(_ports)
    socket = draw(st.none() | _folders)
    tls = draw(st.sampled_from(list(_SSLMODES)))
    # libpq's rule: an authority in the URL makes verify-ca of require.
    authority = None if tls is Tls.REQUIRED else draw(_files)
    return Target(
        "postgres",
        host="" if socket else draw(_hosts),
        port=0 if socket else port,
        unix_socket=socket and f"{socket}/.s.PGSQL.{port}",
        user=draw(text.filter(bool)),
        password=draw(passwords),
        database=draw(_databases),
        tls=Tls.OFF if socket else tls,
        tls_ca=authority,
        tls_cert=draw(_files),
        tls_key=draw(_files),
        connect_timeout=draw(st.none() | st.integers(1, 999_999).map(float)),
        application_name=draw(text.filter(bool)),
        channel_binding=draw(st.booleans()),
    )


@st.composite
def mysql_targets(draw: st.DrawFn, *, users: st.SearchStrategy[str]) -> Target:
    """Whatever either shape can say about MySQL."""
    socket = draw(st.none() | _folders)
    seconds = st.none() | st.integers(1, 9_999).map(float)
    return Target(
        "mysql",
        host="" if socket else draw(_hosts),
        port=0 if socket else draw(_ports),
        unix_socket=socket,
        user=draw(users),
        password=draw(passwords),
        database=draw(_databases),
        tls=Tls.OFF if socket else draw(st.sampled_from(list(_GO_TLS))),
        tls_ca=draw(_files),
        tls_cert=draw(_files),
        tls_key=draw(_files),
        connect_timeout=draw(seconds),
        read_timeout=draw(seconds),
        write_timeout=draw(seconds),
    )


def postgres_url(target: Target) -> str:
    """A `postgres://` URL."""
    folder, _, port = (target.unix_socket or "").rpartition("/.s.PGSQL.")
    parameters = {
        "host": folder,
        "port": port,
        "sslmode": "" if folder else _SSLMODES[target.tls],
        "sslrootcert": str(target.tls_ca or ""),
        "sslcert": str(target.tls_cert or ""),
        "sslkey": str(target.tls_key or ""),
        "connect_timeout": f"{target.connect_timeout or 0:.0f}",
        "application_name": target.application_name,
        "channel_binding": "require" if target.channel_binding else "prefer",
    }
    where = "" if folder else f"{_endpoint(target)}"
    query = urlencode({name: value for name, value in parameters.items() if value}, quote_via=quote)
    return f"postgres://{_credentials(target)}@{where}/{quote(target.database, safe='')}?{query}"


def mysql_url(target: Target) -> str:
    """A `mysql://` URL."""
    socket = f"unix_socket={quote(target.unix_socket, safe='')}&" if target.unix_socket else ""
    where = "" if target.unix_socket else _endpoint(target)
    database = quote(target.database, safe="")
    return f"mysql://{_credentials(target)}@{where}/{database}?{socket}{_mysql_parameters(target)}"


def go_form(target: Target) -> str:
    """The form of Go's driver, in which user and password stand for themselves."""
    where = f"unix({target.unix_socket})" if target.unix_socket else f"tcp({_endpoint(target)})"
    database = quote(target.database, safe="")
    return f"{target.user}:{target.password}@{where}/{database}?{_mysql_parameters(target)}"


def _mysql_parameters(target: Target) -> str:
    files = {"ssl-ca": target.tls_ca, "ssl-cert": target.tls_cert, "ssl-key": target.tls_key}
    waits = {
        "timeout": target.connect_timeout,
        "readTimeout": target.read_timeout,
        "writeTimeout": target.write_timeout,
    }
    query = urlencode(
        {name: str(file) for name, file in files.items() if file}
        | {name: f"{seconds:.0f}s" for name, seconds in waits.items() if seconds}
    )
    return f"parseTime=true&{_GO_TLS[target.tls]}{'&' if query else ''}{query}"


def _credentials(target: Target) -> str:
    return f"{quote(target.user, safe='')}:{quote(target.password, safe='')}"


def _endpoint(target: Target) -> str:
    return f"[{target.host}]:{target.port}" if ":" in target.host else f"{target.host}:{target.port}"
