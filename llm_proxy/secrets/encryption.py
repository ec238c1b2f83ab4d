"""Secrets at rest: providers' API keys sealed under a ring of keys, and tokens known by their digest only.

A sealed API key is text that names how it was made, so that a value of one kind can never pass for another:

    enc:v2:<kid>:<base64url(nonce ‖ ciphertext ‖ tag)>   AES-256-GCM, bound to its project by the associated data
    enc:v1:<base64(nonce ‖ ciphertext ‖ tag)>            AES-256-GCM without associated data; read, never written
    plain:<key>                                          where the operator allowed plain text

The key id `kid` is a short digest of the key: it finds the key in the ring and tells nothing about it. Nonces are
random, which is safe for some 2³² seals under one key (NIST SP 800-38D, section 8.3); a project is sealed when its
key changes, so that is never reached.
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
    """The keys themselves are not usable: a wrong setting, or a key file that is damaged or open to others."""


class SealError(SecretError):
    """A sealed value cannot be opened with this ring, or is not a sealed value at all."""


class KeyRing:
    """The keys that seal API keys: the first one seals, every one opens.

    A ring without keys must be allowed plain text, and then writes plain text.
    """

    __slots__ = ("_ciphers", "_keys", "_plaintext", "_sealing_kid")

    def __init__(self, keys: Iterable[bytes] = (), *, allow_plaintext: bool = False) -> None:
        """Make a ring of 32-byte keys.

        Args:
            keys: the first one seals; all of them open.
            allow_plaintext: whether `plain:` values may be read, and written where the ring has no key.

        Raises:
            KeyRingError: a key has the wrong length or comes twice, or there is none and plain text is not allowed.
        """
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
        """Read the form of `ENCRYPTION_KEY`: base64 of 32 bytes, several separated by commas.

        Raises:
            KeyRingError: naming the place in the list, never the value.
        """
        keys = [_decode_key(part.strip(), place) for place, part in enumerate(text.split(","), start=1)]
        return cls(keys, allow_plaintext=allow_plaintext)

    @classmethod
    def generate(cls) -> Self:
        """Make a ring with one fresh random key."""
        return cls([secrets.token_bytes(KEY_BYTES)])

    @classmethod
    def plaintext(cls) -> Self:
        """Make the ring of `ALLOW_PLAINTEXT_API_KEYS`: it has no key, and reads and writes `plain:` values."""
        return cls(allow_plaintext=True)

    def to_setting(self) -> str:
        """Give the keys in the form that `from_setting` reads. This is the secret itself: for key files only."""
        return ",".join(base64.b64encode(key).decode("ascii") for key in self._keys)

    @property
    def key_ids(self) -> tuple[str, ...]:
        """The ids of the keys, the sealing one first; empty where API keys are kept in plain text."""
        return tuple(self._ciphers)

    def seal(self, plain: str, project_id: str) -> str:
        """Seal an API key for one project; it opens for no other."""
        if self._sealing_kid is None:
            return _PLAIN + plain
        nonce = os.urandom(_NONCE_BYTES)
        box = self._ciphers[self._sealing_kid].encrypt(nonce, plain.encode(), project_id.encode())
        return f"{_V2}{self._sealing_kid}:{base64.urlsafe_b64encode(nonce + box).decode('ascii')}"

    def open(self, sealed: str, project_id: str) -> str:
        """Give back the API key that was sealed for this project.

        Raises:
            SealError: the form or the key is unknown, the value was altered or belongs to another project, or it is
                plain text where that is not allowed.
        """
        if sealed.startswith(_V2):
            kid, colon, body = sealed[len(_V2) :].partition(":")
            if not colon:
                raise SealError("a sealed API key is damaged: it names no key")
            cipher = self._ciphers.get(kid)
            if cipher is None:
                raise SealError(
                    f"an API key was sealed under the key {kid!r}, which is not in ENCRYPTION_KEY"
                    f" (known here: {', '.join(self._ciphers) or 'none'})"
                )
            return _decrypt(cipher, _split_box(body, urlsafe=True), project_id.encode())
        if sealed.startswith(_V1):
            return self._open_v1(sealed[len(_V1) :])
        if sealed.startswith(_PLAIN):
            if not self._plaintext:
                raise SealError(
                    "an API key is stored in plain text; set ALLOW_PLAINTEXT_API_KEYS=true to read it"
                    " and 'llm-proxy keys rotate' to encrypt it"
                )
            return sealed[len(_PLAIN) :]
        raise SealError("a stored API key has an unknown form: it is neither sealed nor marked as plain text")

    def is_current(self, sealed: str) -> bool:
        """Whether `seal` would write this value under the same key and in the same form today."""
        if self._sealing_kid is None:
            return sealed.startswith(_PLAIN)
        return sealed.startswith(f"{_V2}{self._sealing_kid}:")

    def missing(self, sealed: str) -> str | None:
        """What it takes to open this value and is not in the ring, in words; None where nothing is known to be missing.

        It is told from the value's form alone, and quickly: whether it really opens is not tried.
        """
        if sealed.startswith(_V2):
            kid = sealed[len(_V2) :].partition(":")[0]
            return None if kid in self._ciphers else f"the key with the id {kid}"
        if sealed.startswith(_PLAIN) and not self._plaintext:
            return "ALLOW_PLAINTEXT_API_KEYS=true"
        return None

    def _open_v1(self, body: str) -> str:
        # The first version names no key, so each one is tried: authentication tells the right one.
        box = _split_box(body, urlsafe=False)
        for cipher in self._ciphers.values():
            with suppress(SealError):
                return _decrypt(cipher, box, None)
        raise SealError("an API key in the enc:v1 form opens with none of the keys in ENCRYPTION_KEY")

    def __repr__(self) -> str:
        return f"KeyRing(key_ids={list(self._ciphers)!r}, plaintext={self._plaintext!r})"


def load_or_create_key_file(path: Path) -> KeyRing:
    """Read the ring from a key file, or make the file with one fresh key.

    The file has the form of `ENCRYPTION_KEY`, is readable by its owner only, and appears complete or not at all: of
    several processes that start at once, one makes it and the others read it.

    Raises:
        KeyRingError: the file is damaged, open to other users, or cannot be read or made.
    """
    try:
        if not path.exists():
            private_file.create(path, KeyRing.generate().to_setting() + "\n")
        return _read_key_file(path)
    except OSError as error:
        raise KeyRingError(f"the key file {path} cannot be used: {error.strerror}") from error


def last4(secret: str) -> str:
    """Give the last four characters, by which people tell secrets apart; nothing of a secret that is too short."""
    return secret[-4:] if len(secret) >= _LAST4_FROM else ""


def _key_id(key: bytes) -> str:
    return hashlib.sha256(b"llm-proxy key id\x00" + key).hexdigest()[:8]


def _decode_key(text: str, place: int) -> bytes:
    """Decode one key from either alphabet of base64, padded or not."""
    if not text:
        raise KeyRingError(f"key {place} is empty")
    standard = text.rstrip("=").replace("-", "+").replace("_", "/")
    try:
        return base64.b64decode(standard + "=" * (-len(standard) % 4), validate=True)
    except (binascii.Error, ValueError):
        # The decoder's own message is left out, and so is the context: neither may carry the key into a log.
        raise KeyRingError(f"key {place} is not base64 of {KEY_BYTES} bytes") from None


def _split_box(body: str, *, urlsafe: bool) -> tuple[bytes, bytes]:
    """Decode a sealed body into its nonce and its ciphertext with tag."""
    try:
        raw = base64.b64decode(body, altchars=b"-_" if urlsafe else None, validate=True)
    except (binascii.Error, ValueError):
        raise SealError("a sealed API key is damaged: it is not base64") from None
    if len(raw) < _NONCE_BYTES + _TAG_BYTES:
        raise SealError("a sealed API key is damaged: it is too short")
    return raw[:_NONCE_BYTES], raw[_NONCE_BYTES:]


def _decrypt(cipher: AESGCM, box: tuple[bytes, bytes], associated: bytes | None) -> str:
    try:
        return cipher.decrypt(box[0], box[1], associated).decode()
    except InvalidTag:
        raise SealError("a sealed API key was altered, or belongs to another project") from None
    except UnicodeDecodeError:
        raise SealError("a sealed API key is damaged: it is not text") from None


def _read_key_file(path: Path) -> KeyRing:
    try:
        content = private_file.read(path)
    except private_file.ExposedFile as error:
        raise KeyRingError(f"the key file {path} {error}") from None
    try:
        return KeyRing.from_setting(content.decode("ascii").strip())
    except (KeyRingError, UnicodeDecodeError) as error:
        reason = error if isinstance(error, KeyRingError) else "it is not text"
        remedy = "the API keys in the database are encrypted with it, so bring it back from a backup"
        raise KeyRingError(f"the key file {path} is damaged: {reason}; {remedy}") from None
