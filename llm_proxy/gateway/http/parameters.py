"""The parameters in a request body, for providers that limit their values (`param_whitelist`).

A whitelist works only if the provider reads the same value that was checked. So an ambiguous body is refused: a media
type that the endpoint does not accept, a compressed body, ambiguous JSON (`json_members.py`), a form that is not plain
(`multipart.py`), and a name that some parsers read as a limited parameter.

A body is read while it arrives, in constant memory.
"""

from __future__ import annotations

import fnmatch
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

from llm_proxy.errors import InvalidJson, ParameterNotAllowed
from llm_proxy.gateway.http import multipart
from llm_proxy.gateway.http.headers import Headers
from llm_proxy.gateway.http.json_members import JsonMembers
from llm_proxy.gateway.http.multipart import Multipart
from llm_proxy.logging.redaction import quoted

#: The values of each parameter as text, in order; None for a list, an object, a file or a long text.
Parameters = Mapping[str, Sequence[str | None]]

#: Bytes of a body that are read between two checkpoints; a few milliseconds at most.
SLICE = 16 * 1024

_JSON = re.compile(rb"""application/json(?:[ \t]*;[ \t]*charset="?utf-8"?)?""", re.IGNORECASE)

#: Endpoints that accept files, and so forms: in OpenAI's API files, uploads, images, audio, videos, containers, skills
#: (https://platform.openai.com/docs/api-reference), of Anthropic's files and skills (https://docs.claude.com/en/api).
#: All others accept JSON only, and none accepts `application/x-www-form-urlencoded`.
_UPLOAD = re.compile(
    rb".*/(?:files|upload|parts|edits|variations|transcriptions|translations|videos|remix|extensions|characters|skills|versions)"
)

#: After it, some parsers read the rest of a name as an index or a key, or ignore it: `model[0]`, `model.x`, C strings.
_INDEX = re.compile(r"[\[.\0]")

#: Not allowed in the value of a limited parameter: control characters, at which some parsers end a text, and halves of
#: surrogate pairs, which some parsers omit or replace.
_UNSAFE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")


def reader(
    headers: Headers, path: bytes, json: Callable[[], JsonMembers] = JsonMembers, form: type[Multipart] = Multipart
) -> JsonMembers | Multipart:
    """Create the reader of a request's body; without a `Content-Type`, it is JSON. The path may allow forms.

    `json` and `form` make the readers.

    Raises `InvalidJson` or `ParameterNotAllowed` if the body has a type or an encoding that cannot be read here, and so
    do the methods of the reader if the body is ambiguous.
    """
    content_types = [value for name, value in headers if name == b"content-type"]
    if len(content_types) > 1:
        raise InvalidJson("The request has more than one Content-Type.")
    if any(name == b"content-encoding" and value.strip().lower() != b"identity" for name, value in headers):
        raise ParameterNotAllowed("A compressed body is not accepted here, because its parameters have to be checked.")
    accepts_forms = _UPLOAD.fullmatch(path) is not None
    if not content_types or _JSON.fullmatch(content_types[0]):
        return json()
    found = multipart.CONTENT_TYPE.fullmatch(content_types[0])
    if accepts_forms and found is not None:
        return form(found[1] or found[2])
    allowed = "application/json" + (", multipart/form-data with one plain boundary" if accepts_forms else "")
    shown = quoted(content_types[0].decode("latin-1"))
    raise ParameterNotAllowed(
        f"Content-Type {shown} is not allowed here, because the parameters have to be checked (allowed: {allowed})"
    )


class ParameterRules:
    """The compiled `param_whitelist` of a provider."""

    def __init__(self, whitelist: Mapping[str, Sequence[str]]) -> None:
        """Compile globs (`*`, `?`, `[…]`, case-sensitive) per parameter; `*` alone allows lists and objects too."""
        self._whitelist = whitelist
        self._bare = {bare(name): name for name in whitelist}
        self._patterns = {
            name: None if "*" in globs else re.compile("|".join(map(fnmatch.translate, globs)))
            for name, globs in whitelist.items()
        }

    def refusal(self, parameters: Parameters) -> ParameterNotAllowed | None:
        """Return the error about `parameters`, if any. An absent one is allowed: the provider's default applies."""
        for name, values in parameters.items():
            if name not in self._patterns:
                if known := alias_of(name, self._bare):
                    return ParameterNotAllowed(
                        f'parameter {quoted(name)} is not allowed; write it as "{known}"', param=known
                    )
                continue
            pattern = self._patterns[name]
            if pattern is None:
                continue
            for value in values:
                if value is None or _UNSAFE.search(value) or not pattern.match(value):
                    shown = "as a list, an object or a file" if value is None else quoted(value)
                    allowed = ", ".join(self._whitelist[name])
                    return ParameterNotAllowed(f"{name} {shown} is not allowed here (allowed: {allowed})", param=name)
        return None


def alias_of(name: str, known: Mapping[str, str]) -> str | None:
    """The one of the `known` names, by their `bare` form, that some parsers read this name as."""
    found = known.get(bare(name))
    # Most names are identifiers, which have no index.
    return found if found or name.isidentifier() else known.get(bare(_INDEX.split(name, maxsplit=1)[0]))


@lru_cache(maxsize=1024)
def bare(name: str) -> str:
    """A name as seen by parsers that ignore case, punctuation, blanks and Unicode variants of a letter."""
    return "".join(filter(str.isalnum, unicodedata.normalize("NFKD", name).casefold()))
