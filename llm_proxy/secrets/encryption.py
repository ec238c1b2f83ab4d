"""Providers' API keys at rest, encrypted under the keys of `ENCRYPTION_KEY`.

A sealed API key is text that names its form, so that a value of one form is never read as another:

    enc:v2:<kid>:<base64url(nonce ‖ ciphertext ‖ tag)>   AES-256-GCM, bound to its owner's id by the associated data
    enc:v1:<base64(nonce ‖ ciphertext ‖ tag)>            AES-256-GCM without associated data; read, never written
    plain:<key>                                          if the operator allows plain text

The owner is a credential, or a project for its copy of one.
The key id `kid` is a short digest of the key. Nonces are random, which is safe for 2³² seals under one key (NIST SP
800-38D, section 8.3); that is never reached, because an API key is sealed only when it changes.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import secrets
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final, Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from llm_proxy.secrets import SecretError, private_file

KEY_BYTES: Final = 32
_NONCE_BYTES: Final = 12
_TAG_BYTES: Final = 16

_V2: Final = "enc:v2:"
_V1: Final = "enc:v1:"
_PLAIN: Final = "plain:"

_LAST4_FROM: Final = 8


class KeyRingError(SecretError):
    """The keys cannot be used: a wrong setting, or a key file that is damaged or open to other users."""


class SealError(SecretError):
    """A value cannot be opened with this ring, or is not a sealed value."""


class KeyRing:
    """The keys that encrypt API keys. The first one seals, all of them open. Without keys, it writes plain text."""

    __slots__ = ("_ciphers", "_keys", "_plaintext", "_sealing_kid")

    def __init__(self, keys: Iterable[bytes] = (), *, allow_plaintext: bool = False) -> None:
        """Raise `KeyRingError` for wrong keys. `allow_plaintext` allows to read `plain:` values."""
        self._keys = tuple(keys)
        self._plaintext = allow_plaintext
        self._ciphers: dict[str, AESGCM] = {}
        for place, key in enumerate(self._keys, start=1):
            if len(key) != KEY_BYTES:
                raise KeyRingError(f"key {place} has {len(key)} bytes; a key has {KEY_BYTES}")
            kid = _key_id(key)
            if kid in self._ciphers:
                raise KeyRingError(f"key {place} is in the list twice")
            self._ciphers[kid] = AESGCM(key)
        if not self._ciphers and not allow_plaintext:
            raise KeyRingError("no key is set, and storing API keys in plain text is not allowed")
        self._sealing_kid = next(iter(self._ciphers), None)

    @classmethod
    def from_setting(cls, text: str, *, allow_plaintext: bool = False) -> Self:
        """Parse `ENCRYPTION_KEY`: base64 of 32 bytes, several separated by commas. Raises `KeyRingError`."""
        keys = [_decode_key(part.strip(), place) for place, part in enumerate(text.split(","), start=1)]
        return cls(keys, allow_plaintext=allow_plaintext)

    @classmethod
    def generate(cls) -> Self:
        return cls([secrets.token_bytes(KEY_BYTES)])

    def to_setting(self) -> str:
        """The keys as in `ENCRYPTION_KEY`. This is a secret: for key files only."""
        return ",".join(base64.b64encode(key).decode("ascii") for key in self._keys)

    @property
    def key_ids(self) -> tuple[str, ...]:
        """The ids of the keys, the first one seals; empty for plain text."""
        return tuple(self._ciphers)

    def seal(self, plain: str, owner: str) -> str:
        """Encrypt an API key for the id of its owner; it cannot be opened for another one."""
        if self._sealing_kid is None:
            return _PLAIN + plain
        nonce = os.urandom(_NONCE_BYTES)
        box = self._ciphers[self._sealing_kid].encrypt(nonce, plain.encode(), owner.encode())
        return f"{_V2}{self._sealing_kid}:{base64.urlsafe_b64encode(nonce + box).decode('ascii')}"

    def open(self, sealed: str, owner: str) -> str:
        """Decrypt the API key of an owner. Raises `SealError`."""
        if sealed.startswith(_V2):
            kid, colon, body = sealed[len(_V2) :].partition(":")
            if not colon:
                raise SealError("an encrypted API key is damaged: it names no encryption key")
            cipher = self._ciphers.get(kid)
            if cipher is None:
                raise SealError(
                    f"an API key was encrypted with the key {kid!r}, which is not in ENCRYPTION_KEY"
                    f" (known keys: {', '.join(self._ciphers) or 'none'})"
                )
            return _decrypt(cipher, _split_box(body.replace("-", "+").replace("_", "/")), owner.encode())
        if sealed.startswith(_V1):
            return self._open_v1(sealed[len(_V1) :])
        if sealed.startswith(_PLAIN):
            if not self._plaintext:
                raise SealError(
                    "an API key is stored in plain text; set ALLOW_PLAINTEXT_API_KEYS=true to read it"
                    " and 'llm-proxy keys rotate' to encrypt it"
                )
            return sealed[len(_PLAIN) :]
        raise SealError("a stored API key has an unknown format: it is neither encrypted nor marked as plain text")

    def is_current(self, sealed: str) -> bool:
        """Whether the value has the form and the key that `seal` uses now."""
        if self._sealing_kid is None:
            return sealed.startswith(_PLAIN)
        return sealed.startswith(f"{_V2}{self._sealing_kid}:")

    def missing(self, sealed: str) -> str | None:
        """Describe what `open` needs and is not configured; None if all is. It does not decrypt."""
        if sealed.startswith(_V2):
            kid = sealed[len(_V2) :].partition(":")[0]
            return None if kid in self._ciphers else f"the key with the id {kid}"
        if sealed.startswith(_PLAIN) and not self._plaintext:
            return "ALLOW_PLAINTEXT_API_KEYS=true"
        return None

    def _open_v1(self, body: str) -> str:
        # This form does not name its key, so each one is tried; authentication fails with a wrong one.
        box = _split_box(body)
        for cipher in self._ciphers.values():
            with suppress(SealError):
                return _decrypt(cipher, box, None)
        raise SealError("an API key in the format enc:v1 cannot be decrypted with any of the keys in ENCRYPTION_KEY")

    def __repr__(self) -> str:
        return f"KeyRing(key_ids={list(self._ciphers)!r}, plaintext={self._plaintext!r})"


def load_or_create_key_file(path: Path) -> KeyRing:
    """Read the ring from a key file. If it does not exist, create it with one random key. Raises `KeyRingError`.

    If several processes do this at the same time, one creates the file and the others read it.
    """
    try:
        if not path.exists():
            private_file.create(path, KeyRing.generate().to_setting() + "\n")
        content = private_file.read(path)
    except OSError as error:
        raise KeyRingError(f"the key file {path} cannot be used: {error.strerror}") from error
    except private_file.ExposedFile as error:
        raise KeyRingError(f"the key file {path} {error}") from None
    try:
        return KeyRing.from_setting(content.decode("ascii").strip())
    except (KeyRingError, UnicodeDecodeError) as error:
        reason = error if isinstance(error, KeyRingError) else "it is not text"
        remedy = "the API keys in the database are encrypted with it, so restore it from a backup"
        raise KeyRingError(f"the key file {path} is damaged: {reason}; {remedy}") from None


def last4(secret: str) -> str:
    """The last four characters, to show to people; empty if the secret is too short, or is a document in JSON."""
    return secret[-4:] if len(secret) >= _LAST4_FROM and not secret.startswith("{") else ""


def _key_id(key: bytes) -> str:
    return hashlib.sha256(b"llm-proxy key id\x00" + key).hexdigest()[:8]


def _decode_key(text: str, place: int) -> bytes:
    """Decode a key from either alphabet of base64, with or without padding."""
    if not text:
        raise KeyRingError(f"key {place} is empty")
    standard = text.rstrip("=").replace("-", "+").replace("_", "/")
    try:
        return base64.b64decode(standard + "=" * (-len(standard) % 4), validate=True)
    except ValueError:
        # Without the decoder's message and context: they may contain the key.
        raise KeyRingError(f"key {place} is not base64 of {KEY_BYTES} bytes") from None


def _split_box(body: str) -> tuple[bytes, bytes]:
    """The nonce, and the ciphertext with its tag."""
    try:
        raw = binascii.a2b_base64(body, strict_mode=True)
    except ValueError:
        raise SealError("an encrypted API key is damaged: it is not base64") from None
    if len(raw) < _NONCE_BYTES + _TAG_BYTES:
        raise SealError("an encrypted API key is damaged: it is too short")
    return raw[:_NONCE_BYTES], raw[_NONCE_BYTES:]


def _decrypt(cipher: AESGCM, box: tuple[bytes, bytes], associated: bytes | None) -> str:
    try:
        return cipher.decrypt(box[0], box[1], associated).decode()
    except InvalidTag:
        raise SealError("an encrypted API key was altered, or belongs to another credential or project") from None
    except UnicodeDecodeError:
        raise SealError("an encrypted API key is damaged: it is not text") from None
