from __future__ import annotations

import base64
import os
import stat
import threading
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from llm_proxy.secrets import encryption
from llm_proxy.secrets.encryption import KeyRing, KeyRingError, SealError, load_or_create_key_file

PROJECT = "6f1b4a52-8a39-4c0e-9d0e-6c1f7d1f3b11"
OTHER = "0d9c2f6e-1d53-4f55-8f0a-3a52a8f2a0c4"
API_KEY = "sk-canary-0123456789abcdef"
KEY_A = bytes(range(32))
KEY_B = bytes(range(32, 64))


def setting(*keys: bytes) -> str:
    return ",".join(base64.b64encode(key).decode() for key in keys)


def test_a_sealed_key_opens_for_its_project() -> None:
    ring = KeyRing.from_setting(setting(KEY_A))
    sealed = ring.seal(API_KEY, PROJECT)
    assert ring.open(sealed, PROJECT) == API_KEY
    assert API_KEY not in sealed
    assert sealed.startswith(f"enc:v2:{ring.key_ids[0]}:")
    assert sealed != ring.seal(API_KEY, PROJECT), "nonces must differ"


def test_a_sealed_key_opens_for_no_other_project() -> None:
    ring = KeyRing.generate()
    with pytest.raises(SealError, match="altered, or belongs to another credential or project"):
        ring.open(ring.seal(API_KEY, PROJECT), OTHER)


def test_every_altered_byte_is_noticed() -> None:
    ring = KeyRing.generate()
    head, _, body = ring.seal(API_KEY, PROJECT).rpartition(":")
    raw = base64.urlsafe_b64decode(body)
    for place in range(len(raw)):
        altered = bytearray(raw)
        altered[place] ^= 1
        with pytest.raises(SealError, match="altered"):
            ring.open(f"{head}:{base64.urlsafe_b64encode(bytes(altered)).decode()}", PROJECT)


def test_the_first_key_seals_and_every_key_opens() -> None:
    old = KeyRing.from_setting(setting(KEY_A))
    both = KeyRing.from_setting(setting(KEY_B, KEY_A))
    sealed_before = old.seal(API_KEY, PROJECT)
    assert both.open(sealed_before, PROJECT) == API_KEY
    assert not both.is_current(sealed_before)
    sealed_now = both.seal(API_KEY, PROJECT)
    assert both.is_current(sealed_now)
    assert KeyRing.from_setting(setting(KEY_B)).open(sealed_now, PROJECT) == API_KEY
    with pytest.raises(SealError, match=f"'{both.key_ids[0]}', which is not in ENCRYPTION_KEY .*{old.key_ids[0]}"):
        old.open(sealed_now, PROJECT)


def test_the_first_version_is_read_with_any_key() -> None:
    nonce = os.urandom(12)
    box = AESGCM(KEY_B).encrypt(nonce, API_KEY.encode(), None)
    sealed = "enc:v1:" + base64.b64encode(nonce + box).decode()
    assert KeyRing.from_setting(setting(KEY_A, KEY_B)).open(sealed, PROJECT) == API_KEY
    assert not KeyRing.from_setting(setting(KEY_B)).is_current(sealed)
    with pytest.raises(SealError, match="enc:v1 cannot be decrypted with any of the keys"):
        KeyRing.from_setting(setting(KEY_A)).open(sealed, PROJECT)


@pytest.mark.parametrize(
    ("sealed", "said"),
    [
        ("", "unknown form"),
        (API_KEY, "unknown form"),
        ("enc:v3:abc:def", "unknown form"),
        ("ENC:V2:abc:def", "unknown form"),
        (" plain:x", "unknown form"),
        ("enc:v2:nocolon", "names no encryption key"),
        ("enc:v2:ffffffff:AAAA", "'ffffffff', which is not in ENCRYPTION_KEY"),
        ("enc:v2:{kid}:****", "not base64"),
        ("enc:v2:{kid}:AAAA", "too short"),
        ("enc:v1:****", "not base64"),
        ("enc:v1:AAAA", "too short"),
        ("plain:" + API_KEY, "ALLOW_PLAINTEXT_API_KEYS=true"),
    ],
)
def test_a_value_that_cannot_be_opened_is_refused_with_a_reason(sealed: str, said: str) -> None:
    ring = KeyRing.from_setting(setting(KEY_A))
    with pytest.raises(SealError, match=said) as refusal:
        ring.open(sealed.format(kid=ring.key_ids[0]), PROJECT)
    assert API_KEY not in str(refusal.value)


def test_plain_text_is_read_if_it_is_allowed() -> None:
    ring = KeyRing(allow_plaintext=True)
    sealed = ring.seal(API_KEY, PROJECT)
    assert sealed == "plain:" + API_KEY
    assert ring.open(sealed, PROJECT) == API_KEY
    assert ring.is_current(sealed)
    with pytest.raises(SealError, match="known keys: none"):
        ring.open(KeyRing.generate().seal(API_KEY, PROJECT), PROJECT)


def test_a_ring_with_a_key_seals_even_if_plain_text_is_allowed() -> None:
    ring = KeyRing.from_setting(setting(KEY_A), allow_plaintext=True)
    assert ring.open("plain:" + API_KEY, PROJECT) == API_KEY
    assert not ring.is_current("plain:" + API_KEY)
    assert ring.seal(API_KEY, PROJECT).startswith("enc:v2:")


@pytest.mark.parametrize(
    "text",
    [
        base64.b64encode(bytes([251] * 32)).decode(),
        base64.urlsafe_b64encode(bytes([251] * 32)).decode(),
        base64.urlsafe_b64encode(bytes([251] * 32)).decode().rstrip("="),
    ],
)
def test_both_alphabets_of_base64_are_read(text: str) -> None:
    assert KeyRing.from_setting(text).key_ids == KeyRing([bytes([251] * 32)]).key_ids


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "key 1 is empty"),
        (setting(KEY_A) + ",", "key 2 is empty"),
        ("not base64 at all!", "key 1 is not base64 of 32 bytes"),
        ("A", "key 1 is not base64 of 32 bytes"),
        (base64.b64encode(bytes(16)).decode(), "key 1 has 16 bytes; a key has 32"),
        (setting(KEY_A, KEY_B, KEY_A), "key 3 is in the list twice"),
    ],
)
def test_wrong_keys_are_named_by_their_place(text: str, said: str) -> None:
    with pytest.raises(KeyRingError) as refusal:
        KeyRing.from_setting(text)
    assert str(refusal.value) == said


def test_a_ring_without_keys_and_plain_text_is_refused() -> None:
    with pytest.raises(KeyRingError, match="no key is set"):
        KeyRing()


def test_a_ring_never_shows_its_keys() -> None:
    ring = KeyRing.from_setting(setting(KEY_A, KEY_B))
    shown = f"{ring!r} {ring}"
    assert shown.startswith("KeyRing(key_ids=['")
    for key in (KEY_A, KEY_B):
        for form in (key.hex(), base64.b64encode(key).decode(), repr(key)):
            assert form not in shown


def test_a_key_file_is_created_once_and_readable_by_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "data" / "llm-proxy.key"
    before = os.umask(0)
    try:
        ring = load_or_create_key_file(path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == ["llm-proxy.key"]
    assert load_or_create_key_file(path).open(ring.seal(API_KEY, PROJECT), PROJECT) == API_KEY


def test_simultaneous_starts_agree_on_one_key(tmp_path: Path) -> None:
    path = tmp_path / "llm-proxy.key"
    gate = threading.Barrier(8)
    rings: list[KeyRing] = []

    def start() -> None:
        gate.wait()
        rings.append(load_or_create_key_file(path))

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(rings) == 8
    assert len({ring.key_ids for ring in rings}) == 1


@pytest.mark.parametrize(
    ("content", "mode", "said"),
    [
        (setting(KEY_A).encode(), 0o644, r"open to other users \(mode 0644\): run chmod 600"),
        (b"", 0o600, "damaged: key 1 is empty"),
        (b"\xff\xfe", 0o600, "damaged: it is not text"),
        (b"c2hvcnQ=", 0o600, "damaged: key 1 has 5 bytes"),
    ],
)
def test_a_bad_key_file_is_refused(tmp_path: Path, content: bytes, mode: int, said: str) -> None:
    path = tmp_path / "llm-proxy.key"
    path.write_bytes(content)
    path.chmod(mode)
    with pytest.raises(KeyRingError, match=said):
        load_or_create_key_file(path)
    assert path.read_bytes() == content


def test_a_key_file_that_cannot_be_used_says_where_and_why(tmp_path: Path) -> None:
    with pytest.raises(KeyRingError, match=rf"key file {tmp_path} cannot be used: Is a directory"):
        load_or_create_key_file(tmp_path)


@pytest.mark.parametrize(("secret", "shown"), [("", ""), ("sk-1234", ""), ("sk-12345", "2345"), (API_KEY, "cdef")])
def test_last4_shows_nothing_of_a_short_secret(secret: str, shown: str) -> None:
    assert encryption.last4(secret) == shown
