"""The sockets of server connections: TLS contexts and TCP keep-alive."""

from __future__ import annotations

import os
import socket
import ssl
from pathlib import Path

import certifi
from sqlalchemy import Connection

from db.dsn.target import Target, Tls
from db.errors import BadDsn
from db.options import Options

#: Idle seconds before the first probe, and between probes: firewalls and NAT drop an idle connection later, Azure
#: after four minutes, AWS after 350 seconds.
_IDLE = 30
_INTERVAL = 10
#: Unanswered probes after which the kernel closes a connection.
_COUNT = 3
#: macOS has another name for the first.
_OPTIONS = (("TCP_KEEPIDLE", _IDLE), ("TCP_KEEPALIVE", _IDLE), ("TCP_KEEPINTVL", _INTERVAL), ("TCP_KEEPCNT", _COUNT))


def keep_alive(connection: socket.socket) -> None:
    """Let the kernel probe a TCP connection while it is idle; other sockets are left alone."""
    if connection.family not in (socket.AF_INET, socket.AF_INET6):
        return
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _OPTIONS:
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def client_context(target: Target, options: Options) -> ssl.SSLContext | None:
    """The context for a target; None if TLS is off. Make one per engine: it costs more than a handshake.

    Files that the URL names take precedence over those of the options.

    Raises:
        BadDsn: a file cannot be read, or a needed one is missing.
    """
    if target.tls is Tls.OFF:
        return None
    authority = target.tls_ca or options.tls_ca
    if target.tls is Tls.CUSTOM and authority is None:
        raise BadDsn("tls=custom needs DATABASE_TLS_CA: a PEM file with the certificates to trust")
    verify = target.tls not in (Tls.ALLOWED, Tls.PREFERRED, Tls.REQUIRED)
    try:
        context = ssl.create_default_context(cafile=authority if verify else None)
    except (OSError, ssl.SSLError) as error:
        raise BadDsn(f"DATABASE_TLS_CA {authority}: no certificates can be read from it") from error
    if verify and authority is None and not _has_system_roots(context):
        context.load_verify_locations(certifi.where())
    # Self-signed certificates of database servers fail the strict profile of newer Pythons.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    context.check_hostname = target.tls in (Tls.VERIFY_FULL, Tls.CUSTOM)
    if not verify:
        context.verify_mode = ssl.CERT_NONE
    _load_client_certificate(context, target.tls_cert or options.tls_cert, target.tls_key or options.tls_key)
    return context


def _has_system_roots(context: ssl.SSLContext) -> bool:
    if context.cert_store_stats()["x509_ca"]:
        return True
    # A directory of roots is searched when a chain is verified, so nothing of it is loaded yet.
    paths = ssl.get_default_verify_paths()
    return any(Path(os.environ.get(paths.openssl_capath_env, paths.openssl_capath)).glob("*.0"))


def _load_client_certificate(context: ssl.SSLContext, certificate: Path | None, key: Path | None) -> None:
    if certificate is None:
        if key is not None:
            raise BadDsn("DATABASE_TLS_KEY needs DATABASE_TLS_CERT")
        return
    try:
        # An empty password, so that an encrypted key is an error and not a prompt on the terminal.
        context.load_cert_chain(certificate, key, password="")
    except (OSError, ssl.SSLError) as error:
        raise BadDsn("DATABASE_TLS_CERT and DATABASE_TLS_KEY: no certificate with its key can be read") from error


def tls_version(connection: Connection, attribute: str) -> str | None:
    """The TLS version of the socket that the driver's connection keeps in `attribute`."""
    version = getattr(getattr(connection.connection.dbapi_connection, attribute, None), "version", None)
    return str(version()) if callable(version) else None
