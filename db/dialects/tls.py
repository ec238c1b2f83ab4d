"""TLS contexts for database connections: one per engine, because making one costs more than a handshake."""

from __future__ import annotations

import os
import ssl
from pathlib import Path

import certifi

from db.dsn.target import Target, Tls
from db.errors import BadDsn
from db.options import Options


def client_context(target: Target, options: Options) -> ssl.SSLContext | None:
    """The context for a target; None where TLS is off. Files that the URL names win over those of the options.

    Raises:
        BadDsn: a file cannot be read, or is missing where one is needed.
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
    # Certificates that database servers make for themselves lack what the strict profile of newer Pythons asks for.
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
