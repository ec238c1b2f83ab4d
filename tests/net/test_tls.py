from __future__ import annotations

import ssl
from pathlib import Path

import pytest
import trustme

from llm_proxy.net.tls import client_context


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The certificate of an authority, in a file."""
    path = tmp_path / "root.pem"
    trustme.CA().cert_pem.write_to_path(str(path))
    return path


def test_a_client_context_verifies_certificates() -> None:
    context = client_context()
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2


def test_a_system_without_roots_uses_certifi(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    assert client_context().cert_store_stats()["x509_ca"] > 50


def test_the_roots_of_the_system_are_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, root: Path) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(root))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    assert client_context().cert_store_stats()["x509_ca"] == 1


def test_a_directory_of_roots_is_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, root: Path) -> None:
    root.rename(tmp_path / "12345678.0")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    assert client_context().cert_store_stats()["x509_ca"] == 0


def test_a_given_authority_is_the_only_trusted_one(root: Path) -> None:
    assert client_context(ca=root).cert_store_stats()["x509_ca"] == 1
    root.write_text("nothing")
    with pytest.raises(ssl.SSLError):
        client_context(ca=root)


def test_an_insecure_context_trusts_any_certificate() -> None:
    assert client_context(insecure=True).verify_mode is ssl.CERT_NONE
