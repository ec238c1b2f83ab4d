from __future__ import annotations

import ipaddress
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from attrs import evolve, frozen
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from db.database import opened
from db.dialects.tls import client_context
from db.dsn import Target, Tls
from db.errors import BadDsn, Unavailable
from db.options import Options
from tests.databases.kinds import on

#: What a client of PostgreSQL says first when it wants TLS.
SSL_REQUEST = bytes((0, 0, 0, 8, 4, 210, 22, 47))


@frozen
class Certificates:
    """Files of a throw-away authority, and of a server and a client that it vouches for."""

    authority: Path
    localhost: Path
    elsewhere: Path
    client: Path


def name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def write(path: Path, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> Path:
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.write_bytes(private + certificate.public_bytes(pem))
    return path


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    folder = tmp_path_factory.mktemp("certificates")
    root = ec.generate_private_key(ec.SECP256R1())
    now = datetime.now(UTC)

    def issue(subject: str, key: ec.EllipticCurvePrivateKey, *, authority: bool) -> x509.Certificate:
        names: list[x509.GeneralName] = [x509.DNSName(subject)]
        if subject == "localhost":
            names.append(x509.IPAddress(ipaddress.ip_address("127.0.0.1")))
        return (
            x509.CertificateBuilder()
            .subject_name(name(subject))
            .issuer_name(name("authority"))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .sign(root, hashes.SHA256())
        )

    def leaf(subject: str) -> Path:
        key = ec.generate_private_key(ec.SECP256R1())
        return write(folder / f"{subject}.pem", key, issue(subject, key, authority=False))

    authority = folder / "authority.pem"
    authority.write_bytes(issue("authority", root, authority=True).public_bytes(serialization.Encoding.PEM))
    return Certificates(authority, leaf("localhost"), leaf("elsewhere.example"), leaf("client"))


@contextmanager
def tls_in_front_of(target: Target, context: ssl.SSLContext) -> Iterator[Target]:
    """A PostgreSQL server that offers TLS, made of one that does not."""

    def pump(source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                sink.sendall(data)
        except OSError:
            pass  # one of the two has hung up
        end(source)
        end(sink)

    def forward(client: socket.socket) -> None:
        try:
            if client.recv(len(SSL_REQUEST)) != SSL_REQUEST:
                return
            client.sendall(b"S")
            with (
                context.wrap_socket(client, server_side=True) as near,
                socket.create_connection((target.host, target.port)) as far,
            ):
                back = threading.Thread(target=pump, args=(far, near))
                back.start()
                pump(near, far)
                back.join()
        except OSError:
            pass  # the client did not like the certificate, or has none
        finally:
            client.close()

    def serve() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=forward, args=(client,))
            thread.start()
            threads.append(thread)

    threads: list[threading.Thread] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        accepting = threading.Thread(target=serve)
        accepting.start()
        yield evolve(target, host="localhost", port=listener.getsockname()[1])
        end(listener)
        accepting.join()
    for thread in threads:
        thread.join()


def end(connection: socket.socket) -> None:
    with suppress(OSError):  # it may have ended already
        connection.shutdown(socket.SHUT_RDWR)


def server_context(certificate: Path, clients: Path | None = None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    # So that a client without a certificate is turned away in the handshake.
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(certificate)
    if clients is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(clients)
    return context


def tls_used(target: Target, options: Options) -> str | None:
    with opened(target, options) as database:
        facts = database.read_now(database.describe)
        assert database.checked_out == 0
    return facts.tls


@on("postgres")
@pytest.mark.parametrize("tls", [Tls.PREFERRED, Tls.REQUIRED])
def test_without_verification_any_certificate_will_do(
    shared_target: Target, certificates: Certificates, tls: Tls
) -> None:
    with tls_in_front_of(shared_target, server_context(certificates.elsewhere)) as target:
        assert tls_used(evolve(target, tls=tls), Options()) == "TLSv1.2"


@on("postgres")
@pytest.mark.parametrize("tls", [Tls.VERIFY_CA, Tls.VERIFY_FULL, Tls.CUSTOM])
def test_a_certificate_of_the_right_authority_for_the_right_host(
    shared_target: Target, certificates: Certificates, tls: Tls
) -> None:
    with tls_in_front_of(shared_target, server_context(certificates.localhost)) as target:
        assert tls_used(evolve(target, tls=tls), Options(tls_ca=certificates.authority)) == "TLSv1.2"
        named = evolve(target, tls=tls, tls_ca=certificates.authority)
        assert tls_used(named, Options(tls_ca=Path("/nonexistent"))) == "TLSv1.2"


@on("postgres")
def test_a_certificate_for_another_host(shared_target: Target, certificates: Certificates) -> None:
    options = Options(tls_ca=certificates.authority)
    with tls_in_front_of(shared_target, server_context(certificates.elsewhere)) as target:
        assert tls_used(evolve(target, tls=Tls.VERIFY_CA), options) == "TLSv1.2"
        with pytest.raises(Unavailable, match="certificate was not accepted: Hostname mismatch"):
            tls_used(evolve(target, tls=Tls.VERIFY_FULL), options)


@on("postgres")
@pytest.mark.parametrize("tls", [Tls.VERIFY_CA, Tls.VERIFY_FULL])
def test_a_certificate_of_an_authority_that_nobody_knows(
    shared_target: Target, certificates: Certificates, tls: Tls
) -> None:
    with (
        tls_in_front_of(shared_target, server_context(certificates.localhost)) as target,
        pytest.raises(Unavailable, match="certificate was not accepted: "),
    ):
        tls_used(evolve(target, tls=tls), Options())


@on("postgres")
def test_a_server_that_wants_to_know_its_clients(shared_target: Target, certificates: Certificates) -> None:
    context = server_context(certificates.localhost, clients=certificates.authority)
    with tls_in_front_of(shared_target, context) as target:
        required = evolve(target, tls=Tls.REQUIRED)
        assert tls_used(required, Options(tls_cert=certificates.client, tls_key=certificates.client)) == "TLSv1.2"
        assert tls_used(evolve(required, tls_cert=certificates.client), Options()) == "TLSv1.2"
        with pytest.raises(Unavailable):
            tls_used(required, Options())


@on("postgres")
def test_a_server_without_tls(shared_target: Target) -> None:
    if tls_used(evolve(shared_target, tls=Tls.PREFERRED), Options()) is not None:
        return  # this one has it
    with pytest.raises(Unavailable, match="does not offer TLS"):
        tls_used(evolve(shared_target, tls=Tls.REQUIRED), Options())


@on("postgres")
def test_a_login_that_proves_nothing(shared_target: Target) -> None:
    """Without TLS there is no channel that a login could be bound to."""
    with pytest.raises(Unavailable, match="channel binding"):
        tls_used(evolve(shared_target, tls=Tls.OFF, channel_binding=True), Options())


@on("mysql", "mariadb")
def test_tls_of_mysql(shared_target: Target) -> None:
    plain = evolve(shared_target, tls=Tls.OFF)
    assert tls_used(plain, Options()) is None
    version = tls_used(evolve(plain, tls=Tls.PREFERRED), Options())
    if version is None:
        with pytest.raises(Unavailable, match="does not offer TLS"):
            tls_used(evolve(plain, tls=Tls.REQUIRED), Options())
        return
    assert tls_used(evolve(plain, tls=Tls.REQUIRED), Options()) == version
    with pytest.raises(Unavailable, match="certificate was not accepted: "):
        tls_used(evolve(plain, tls=Tls.VERIFY_FULL), Options())


@pytest.mark.parametrize(
    ("tls", "options", "words"),
    [
        (Tls.VERIFY_FULL, Options(tls_ca=Path("/nonexistent/ca.pem")), "DATABASE_TLS_CA /nonexistent/ca.pem"),
        (Tls.VERIFY_CA, Options(tls_ca=Path(__file__)), "no certificates"),
        (Tls.CUSTOM, Options(), "needs DATABASE_TLS_CA"),
        (Tls.REQUIRED, Options(tls_key=Path("/k.pem")), "needs DATABASE_TLS_CERT"),
        (Tls.REQUIRED, Options(tls_cert=Path("/nonexistent/c.pem")), "no certificate with its key"),
    ],
)
def test_files_that_cannot_be_used(tls: Tls, options: Options, words: str) -> None:
    with pytest.raises(BadDsn, match=words):
        client_context(Target("postgres", tls=tls), options)


def test_no_context_without_tls() -> None:
    assert client_context(Target("postgres", tls=Tls.OFF), Options(tls_ca=Path("/nonexistent"))) is None
