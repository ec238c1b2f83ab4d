"""An estimate of the usage that no answer reported: tokens from the characters of the request and of the answer.

Tokenizers differ between vendors and are not all public, so each script has a ratio of tokens to characters. Only the
beginning and the end of a request are read, and the beginning of an answer; the rest counts by its length.
"""

from __future__ import annotations

import binascii
import re
from contextlib import suppress
from typing import Final

from llm_proxy.gateway.http.codings import DECODERS, Undecodable

#: Bytes of an answer that are kept for an estimate: nearly all of most answers that are cut off.
SAMPLE: Final = 16 * 1024

#: Paths of endpoints that generate text, of all vendors, and of those that only read it.
_GENERATES: Final = re.compile(
    rb".*(?:/completions|/responses|(?:\A|/v1)/messages|/v[12]/chat|/v1/(?:complete|generate|summarize)"
    rb"|/api/(?:chat|generate)"
    rb"|/invoke(?:-with-response-stream)?|/converse(?:-stream)?"
    rb"|(?::|%3[aA])(?:[gG]enerateContent|[sS]treamGenerateContent|[rR]awPredict|[sS]treamRawPredict))"
)
#: Paths of Mistral that generate text. OpenAI has the same ones, for metadata, but without streams.
_CONVERSES: Final = re.compile(rb".*/v1/conversations(?:/[^/]+(?:/restart)?)?")
_EMBEDS: Final = re.compile(
    rb".*(?:/embeddings|/embed|(?::|%3[aA])(?:embedContent|batchEmbedContents)|embedding[^/:%]*(?::|%3[aA])predict)"
)
#: Models of images and vectors on endpoints for all kinds of models.
_OTHER_MODEL: Final = re.compile(rb"embed|image|imagen|stability|canvas|reel|rerank")

#: Data that is no text, and what it is counted as: the tokens of an image of medium size.
_BINARY: Final = re.compile(rb"[A-Za-z0-9+/_-]{512,}=*")
_BINARY_TOKENS: Final = 800
_BINARY_LENGTH: Final = 512
_BINARY_CHARACTERS: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/_-"

#: Encrypted thoughts, which are long and cost little or nothing.
_SIGNATURE: Final = re.compile(rb'"(?:thoughtSignature|signature|encrypted_content)"\s*:\s*"[^"]*"?')
#: What Anthropic adds to a request with tools, and what a call of a tool has besides its arguments.
_TOOLS: Final = b'"input_schema"'
_TOOLS_TOKENS: Final = 500
_CALL: Final = re.compile(rb'"type"\s*:\s*"tool_use"')
_CALL_TOKENS: Final = 35

#: Texts in requests and in answers, and objects with the arguments of a tool in answers.
_TEXT: Final = re.compile(
    rb'"(?:text|content|input|instructions|system|prompt|message|arguments|thinking|output|description|delta'
    rb'|partial_json|reasoning|reasoning_content|refusal|response|completion)"\s*:\s*"([^"\\]*+(?:\\.[^"\\]*+)*+)'
)
_ARGUMENTS: Final = re.compile(rb'"(?:input|args)"\s*:\s*\{([^}]*)')
#: The end of a text in which a part of the request begins.
_TEXT_END: Final = re.compile(rb'[^"]*"\s*[,}\]]')
#: Events of OpenAI's Responses API repeat each text when it is complete.
_DELTA: Final = re.compile(rb'"delta"\s*:\s*"([^"\\]*+(?:\\.[^"\\]*+)*+)')
_ENCODED_EVENT: Final = re.compile(rb'"bytes"\s*:\s*"([A-Za-z0-9+/=]*)"')

_ESCAPE: Final = re.compile(rb"\\(?:u([0-9a-fA-F]{4})|.)", re.DOTALL)
_ASCII: Final = bytes(range(0x80))
_NOT_FIRST: Final = bytes(range(0x80, 0xC0))
_TWO: Final = bytes(range(0xC0, 0xE0))

#: Characters of a token: of ASCII text, of JSON around it, of alphabets (two bytes in UTF-8) and of all other scripts.
_ASCII_LENGTH: Final = 4.4
_FRAME_LENGTH: Final = 14.0
_ALPHABET_LENGTH: Final = 2.2
_OTHER_LENGTH: Final = 1.2


def reads(path: bytes, *, streamed: bool = False) -> bool:
    """Whether the endpoint bills the tokens of a text in the request; `streamed` says that the answer is a stream."""
    return generates_text(path, streamed=streamed) or _EMBEDS.fullmatch(path) is not None


def generates_text(path: bytes, *, streamed: bool = False) -> bool:
    """Whether the endpoint bills the tokens of a text in the answer too."""
    if streamed and _CONVERSES.fullmatch(path) is not None:
        return True
    return _GENERATES.fullmatch(path) is not None and _OTHER_MODEL.search(path) is None


def input_tokens(first: bytes, last: bytes | None, size: int) -> int:
    """The tokens of a request of `size` bytes with these first and last bytes; see `Inbound.ends`."""
    inside = False
    if last is not None:
        last = last[max(len(first) + len(last) - size, 0) :]
        ending = len(first) - len(first.rstrip(_BINARY_CHARACTERS))
        inside = ending >= _BINARY_LENGTH and _BINARY.match(last) is not None
    tokens, seen, binary = 0.0, 0, 0
    for part in filter(None, (first, last)):
        begins_inside = part is last and _TEXT_END.match(part) is not None
        text = part
        if b"ignature" in text or b"encrypted_content" in text:
            text = _SIGNATURE.sub(b"", text)
        if len(text) >= _BINARY_LENGTH:
            text, found = _BINARY.subn(b"", text)
            binary += found
        seen += len(part)
        texts = b"".join(_TEXT.findall(b'"text":"' + text if begins_inside else text))
        tokens += _tokens(texts) + (len(text) - len(texts)) / _FRAME_LENGTH
    if size > seen and not inside:
        tokens *= size / max(seen, 1)
    extra = (binary - inside) * _BINARY_TOKENS + (_TOOLS_TOKENS if _TOOLS in first + (last or b"") else 0)
    return max(1, round(tokens) + extra)


def output_tokens(sample: bytes, size: int, path: bytes, coding: bytes = b"") -> int:
    """The tokens of an answer of `size` bytes that begins with `sample`, which has this content coding."""
    if not sample:
        return 0
    text = sample
    if coding not in (b"", b"identity"):
        if coding not in DECODERS:
            return 0
        text = b""
        with suppress(Undecodable):
            for piece in DECODERS[coding]().decode(sample):
                text += piece
                if len(text) > SAMPLE * 16:
                    break
    if events := _ENCODED_EVENT.findall(text):
        text = b"".join(map(_decoded, events))
    if path.endswith(b"/responses") and b'"response.' in text:
        found = _DELTA.findall(text)
    else:
        text = _BINARY.sub(b"", _SIGNATURE.sub(b"", text))
        found = _TEXT.findall(text) + _ARGUMENTS.findall(text)
    tokens = _tokens(b"".join(found)) + _CALL_TOKENS * len(_CALL.findall(text))
    return round(tokens * size / len(sample))


def _decoded(event: bytes) -> bytes:
    try:
        return binascii.a2b_base64(event)
    except binascii.Error:
        return b""


def _tokens(text: bytes) -> float:
    """The tokens of a text in a JSON string."""
    if b"\\" in text:
        text = _ESCAPE.sub(_unescaped, text)
    if text.isascii():
        return len(text) / _ASCII_LENGTH
    other = text.translate(None, _ASCII)
    characters = other.translate(None, _NOT_FIRST)
    rest = characters.translate(None, _TWO)
    ascii_tokens = (len(text) - len(other)) / _ASCII_LENGTH
    return ascii_tokens + (len(characters) - len(rest)) / _ALPHABET_LENGTH + len(rest) / _OTHER_LENGTH


def _unescaped(match: re.Match[bytes]) -> bytes:
    code = match[1]
    return b" " if code is None else chr(int(code, 16)).encode("utf-8", "ignore")
