"""Fixtures for tests of the upstream client: certificates and proxied upstreams."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from attrs import frozen
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from llm_proxy.gateway.upstream.connector import Timeouts
from tests.gateway.upstream import proxied
from tests.gateway.upstream.stage import PATIENT, Handler


@frozen
class Authority:
    """A temporary certification authority."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    def pem(self) -> bytes:
        """The root certificate."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def client(self) -> ssl.SSLContext:
        """The context of a client that trusts this authority only."""
        context = ssl.create_default_context(cadata=self.pem().decode())
        context.set_alpn_protocols(["http/1.1"])
        return context

    def server(self, directory: Path, host: str = "localhost", *, days: int = 1) -> ssl.SSLContext:
        """The context of a server with a certificate for `host`, expired if `days` is negative."""
        key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.now(UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)]))
            .issuer_name(self.certificate.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=30))
            .not_valid_after(now + timedelta(days=days))
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
            .sign(self.key, hashes.SHA256())
        )
        path = directory / f"{host}.{days}.pem"
        secret = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        path.write_bytes(secret + certificate.public_bytes(serialization.Encoding.PEM))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(path)
        return context


@pytest.fixture(scope="session")
def make_authority() -> Callable[[], Authority]:
    def make() -> Authority:
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Throw-away CA")])
        now = datetime.now(UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=60))
            .not_valid_after(now + timedelta(days=60))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(key, hashes.SHA256())
        )
        return Authority(key, certificate)

    return make


@pytest.fixture(scope="session")
def authority(make_authority: Callable[[], Authority]) -> Authority:
    return make_authority()


@pytest.fixture
def open_scene(authority: Authority, tmp_path: Path) -> Any:
    """`open_scene(way, handler, timeouts)`: set up an upstream behind an outbound proxy, see `proxied.scene`."""

    def open_scene(way: proxied.Way, handler: Handler, timeouts: Timeouts = PATIENT) -> Any:
        return proxied.scene(authority, tmp_path, way, handler, timeouts)

    return open_scene
