"""TLS towards servers."""

from __future__ import annotations

import os
import ssl
from pathlib import Path

import certifi


def client_context(*, ca: Path | None = None, insecure: bool = False) -> ssl.SSLContext:
    """A context that verifies chain and name against the system's roots, or certifi's where the system has none.

    TLS 1.2 or later, and HTTP/1.1 alone by ALPN. Takes some ten milliseconds: build it once per origin.

    Args:
        ca: PEM file of the only authorities that are trusted.
        insecure: trust any certificate.

    Raises:
        OSError: the file cannot be read, or holds no certificates.
    """
    context = ssl.create_default_context(cafile=ca)
    if ca is None and not _has_system_roots(context):
        context.load_verify_locations(certifi.where())
    # With it, reading never has to wait for writing, nor writing for reading.
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    if insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _has_system_roots(context: ssl.SSLContext) -> bool:
    if context.cert_store_stats()["x509_ca"]:
        return True
    # A directory of roots is searched when a chain is verified, so nothing of it is loaded yet.
    paths = ssl.get_default_verify_paths()
    return any(Path(os.environ.get(paths.openssl_capath_env, paths.openssl_capath)).glob("*.0"))
