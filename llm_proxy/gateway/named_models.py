"""All the models that a request names, for allow-lists and for limits of models.

They are read so that a provider cannot find others: a body that parsers could read in several ways is a fault
(`http/parameters.py`), and so are a model that is given twice or in a form that is no text, a request to an endpoint
that generates and names no model, and models that are in a file. A fault is a `ModelNotAllowed`; without an allow-list,
every limit of models counts such a request.

The provider's entry says where an endpoint names its models (`Provider.models_of`). Besides, tools may have a model of
their own, and so have fallbacks, the query of some endpoints, and a header. Endpoints that generate nothing name none.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote_plus

import msgspec
from attrs import define, field

from llm_proxy.errors import BadRequest, BodyNotRead, InvalidJson, ModelNotAllowed
from llm_proxy.gateway.http import parameters
from llm_proxy.gateway.http.json_members import MALFORMED, JsonMembers, decoded, items_of, members_of, text_of
from llm_proxy.gateway.http.parameters import Parameters, alias_of, bare
from llm_proxy.gateway.usage.shapes import MAX_MODEL, model_name

if TYPE_CHECKING:
    from collections.abc import Generator

    from llm_proxy.gateway.inbound import Inbound
    from llm_proxy.gateway.providers.provider import Provider

_READS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
#: Endpoints of all vendors that generate nothing although they are no reads: they store, count, check or cancel.
_GENERATES_NOTHING: Final = re.compile(
    rb"(?:/upload|/api|/openai|/anthropic|/compatibility|/beta)?(?:/v[0-9]+(?:beta)?)?(?:/openai)?(?:"
    rb"/files(?:/[^/]+)?|/uploads(?:/[^/]+/(?:parts|complete|cancel))?|/datasets"
    rb"|/(?:responses|batches|batch/jobs|fine_tuning/jobs|embed-jobs)/[^/]+/(?:cancel|pause|resume)"
    rb"|/batches/[^/:%]+:cancel|/(?:vector_stores|containers|skills|conversations)(?:/.+)?"
    rb"|/chat/completions/[^/]+|/evals/[^/]+|/evals/[^/]+/runs/[^/]+(?:/cancel)?|/cachedContents/[^/]+"
    rb"|/threads(?:/(?!runs\Z)[^/]+(?:/messages(?:/[^/]+)?|/runs/[^/]+(?:/cancel)?)?)?"
    rb"|/messages/count_tokens|/messages/batches/[^/]+/cancel|/responses/input_tokens"
    rb"|/tokenize|/detokenize|/tokenize-text|/moderations|/show|/guardrail/[^/]+/version/[^/]+/apply"
    rb")"
)
#: The same of endpoints with a model in their path.
_COUNTS: Final = re.compile(
    rb".*(?:(?::|%3[aA])(?:countTokens|computeTokens|fetchPredictOperation)|/count-tokens(?:(?::|%3[aA])rawPredict)?)"
)
#: Endpoints that name a model for other requests, which generate with it and are billed.
_NAMES_FOR_OTHERS: Final = re.compile(rb".*/(?:assistants(?:/[^/]+)?|evals)")

#: Members of each endpoint that may name a model too, also beside a member that is deeper; `*` is any name.
_BESIDE: Final = (
    # Anthropic's advisor, images in OpenAI's Responses, OpenRouter's tools and plugins:
    # https://openrouter.ai/docs/guides/features/plugins/fusion
    "tools.model",
    "tools.parameters.model",
    "tools.parameters.analysis_models",
    "plugins.model",
    "plugins.models",
    "plugins.analysis_models",
    # Anthropic, OpenRouter: https://platform.claude.com/docs/en/build-with-claude/refusals-and-fallback
    "fallbacks.model",
    # Groq: https://console.groq.com/docs/api-reference#chat-create
    "compound_custom.models.answering_model",
    "compound_custom.models.reasoning_model",
    # Together: https://docs.together.ai/reference/chat-completions-1
    "safety_model",
    # Azure: https://learn.microsoft.com/azure/ai-foundry/openai/references/on-your-data
    "data_sources.parameters.embedding_dependency.deployment_name",
    # OpenAI's fine-tuning: https://developers.openai.com/api/docs/guides/graders
    "method.reinforcement.grader.model",
    "method.reinforcement.grader.graders.model",
    "method.reinforcement.grader.graders.*.model",
)
#: Azure's deployment for images: https://learn.microsoft.com/azure/ai-foundry/openai/how-to/responses
_HEADER: Final = b"x-ms-oai-image-generation-deployment"
#: Members beside a model in the path: https://ai.google.dev/api/embeddings#EmbedContentRequest,
#: https://ai.google.dev/api/batch-api
_BESIDE_PATH: Final = (
    *("model", "requests.model", "batch.model"),
    *("batch.inputConfig.requests.requests.request.model", "batch.input_config.requests.requests.request.model"),
)
_QUERY: Final = {"model": "model"}
#: The headers with type and coding of most bodies.
_PLAIN: Final = [(b"content-type", b"application/json")]
#: OpenRouter's name of a configuration, which may have a model, after the name of a model:
#: https://openrouter.ai/docs/features/presets.
_PRESET: Final = "@preset/"
#: Google's full names of models: https://cloud.google.com/vertex-ai/docs/reference/rest/v1/projects.locations.cachedContents
_GOOGLE: Final = re.compile(r"(?:projects/[^/]+/locations/[^/]+/)?(?:publishers/[^/]+/)?models/")
_UNSAFE: Final = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")

_IN_FILE: Final = "The models of this request are in a file, which is not read here. Send the requests one by one."
_ALIAS: Final = "The request has a name that some parsers read as '{}': write it like that."
_TWICE: Final = "The request names its model twice."
_NOT_TEXT: Final = "The request names its model in a form that is no text."
_NONE: Final = "The request names no model."
#: Why no model is known that is named by what the provider stores.
ELSEWHERE: Final = frozenset({_IN_FILE, _NONE})


#: A model, and whether the endpoint itself uses it.
Named = tuple[str, bool]


@define(eq=False)
class _Place:
    """A member that names models, or has members that do.

    If it is `required`, it is where the endpoint names its own models, and its text is the name of a file.
    """

    is_model: bool = False
    required: bool = False
    members: dict[str, _Place] = field(factory=dict)
    #: The names of the members as lenient parsers read them, see `alias_of`.
    bare: dict[str, str] = field(factory=dict)
    #: Of a member of the top level: its name, and those below it that name a model, as in a body; and whether a name
    #: is so deep that one between may be there twice.
    names: dict[bytes, bool] = field(factory=dict)

    def at(self, name: str) -> _Place | None:
        found = self.members.get(name)
        if found is None and (known := alias_of(name, self.bare)):
            raise InvalidJson(_ALIAS.format(known))
        return found or self.members.get("*")


@lru_cache(maxsize=256)
def _places(names: tuple[str, ...]) -> _Place:
    root = _Place()
    parents = dict.fromkeys(("", *(name[: name.rfind(".") + 1] for name in names)))
    for name in (*names, *(parent + beside for parent in parents for beside in _BESIDE)):
        place, path = root, name.split(".")
        for member in path:
            if member != "*":
                place.bare[bare(member)] = member
            place = place.members.setdefault(member, _Place(required=name in names))
        place.is_model = True
        top = root.members[path[0]].names
        top.setdefault(f'"{path[0]}"'.encode(), False)
        last = f'"{path[-1]}"'.encode()
        top[last] = top.get(last, False) or len(path) > 2
    return root


def _read_quickly(body: bytes, root: _Place) -> list[Named] | None:
    """The models in a body that has each name once, as `_Members` finds them; None if it may be another body."""
    # An ASCII letter can be written in one other way only.
    if b"\\u00" in body:
        return None
    try:
        body.decode()
        members = members_of(body)
        found: list[Named] = []
        for name, value in members.items():
            if (place := root.at(name)) is not None:
                for quoted, is_deep in place.names.items():
                    if body.count(quoted) > (quoted[1:-1].decode() in members if is_deep else 1):
                        return None
                found += _under(value, place)
        return found
    except MALFORMED:
        return None


def _under(value: msgspec.Raw, place: _Place | None) -> Iterator[Named]:
    if place is None:
        return
    match bytes(value)[:1]:
        case b"[":
            for item in items_of(value):
                yield from _under(item, place)
        case b"{" if not place.is_model:
            for name, inner in members_of(value).items():
                yield from _under(inner, place.at(name))
        case b'"' if place.is_model:
            yield text_of(value), place.required
        case b'"' if place.required:
            raise InvalidJson(_IN_FILE)
        case first if place.is_model and first != b"n":
            raise InvalidJson(_NOT_TEXT)


class _Members(JsonMembers):
    """Reads a body as `JsonMembers` does, and collects the models in it."""

    # An escape has six bytes for a character.
    nested = 6 * MAX_MODEL

    def __init__(self, root: _Place) -> None:
        super().__init__()
        self.models: list[Named] = []
        self._root = root
        self._levels: list[_Place | None] = []

    def _place(self) -> _Place | None:
        """The place of the value that begins; the values of an array have the place of the array."""
        if not self._levels:
            return self._root
        place = self._levels[-1]
        return place if place is None or self._names is None else place.at(self._name)

    def _opens(self, *, is_object: bool) -> None:
        place = self._place()
        if is_object and place is not None and place.is_model:
            raise InvalidJson(_NOT_TEXT)
        super()._opens(is_object=is_object)
        self._levels.append(place)

    def _closes(self, *, is_object: bool) -> None:
        super()._closes(is_object=is_object)
        self._levels.pop()

    def _take(self, token: bytes | None, scalar: bytes) -> None:
        if token is None and (place := self._place()) is not None and place.is_model and scalar != b"null":
            raise InvalidJson(_NOT_TEXT)
        super()._take(token, scalar)

    def _skips_lists(self) -> bool:
        return self._levels[-1] is None

    def _see(self, text: bytes | None) -> None:
        place = self._place()
        if place is None or not (place.is_model or place.required):
            return
        if not place.is_model:
            raise InvalidJson(_IN_FILE)
        if text is None:
            raise InvalidJson(f"The request names a model with more than {MAX_MODEL} characters.")
        self.models.append((decoded(text), place.required))


def generates(inbound: Inbound, provider: Provider) -> bool:
    """Whether the endpoint generates anything, or may do so: only what is known to generate nothing does not."""
    if inbound.method == "DELETE" or (inbound.method in _READS and not inbound.has_body):
        return False
    return _generates(inbound.route.path, provider)


@lru_cache(maxsize=256)
def _generates(path: bytes, provider: Provider) -> bool:
    if provider.endpoints.model(path) is not None:
        return _COUNTS.fullmatch(path) is None
    return provider.says_models_of(path) or _GENERATES_NOTHING.fullmatch(path) is None


def bills(inbound: Inbound, provider: Provider) -> bool:
    """Whether a successful answer of the endpoint costs something, as far as the proxy knows."""
    return generates(inbound, provider) and _NAMES_FOR_OTHERS.fullmatch(inbound.route.path) is None


def require_body(inbound: Inbound) -> None:
    """Raise `BodyNotRead` if the body has not arrived: nothing had to read it when it began to arrive."""
    if not inbound.ended:
        raise BodyNotRead


def named_models(inbound: Inbound, provider: Provider) -> Generator[None, None, tuple[str, ...]]:
    """Read the models that a request names; yields between parts of a long body.

    Raises:
        ModelNotAllowed: they cannot be read for certain; the message says why.
        BodyNotRead: they are in a body that has not arrived whole.
    """
    try:
        names = _in_query(inbound.query)
        if generates(inbound, provider):
            names += [
                value.decode("latin-1")
                for name, value in inbound.headers
                if len(name) == len(_HEADER) and name.replace(b"_", b"-") == _HEADER
            ]
            found = yield from _of_request(inbound, provider)
            # An assistant or a stored prompt has a model of its own, whatever a tool or the query names.
            if not any(is_own for _, is_own in found):
                raise ModelNotAllowed(_NONE)
            names += [name for name, _ in found]
    except BadRequest as error:
        raise ModelNotAllowed(error.message) from None
    return tuple(_checked(names, google=provider.shape == "google"))


def _of_request(inbound: Inbound, provider: Provider) -> Generator[None, None, list[Named]]:
    path = inbound.route.path
    names, model = provider.models_of(path), provider.endpoints.model(path)
    found: list[Named] = []
    if model is not None:
        names, found = _BESIDE_PATH, [(model, True)]
    if not inbound.has_body:
        return found
    require_body(inbound)
    places = _places(names)
    if inbound.content == _PLAIN and (body := inbound.complete()) is not None:
        models = _read_quickly(body, places)
        if models is not None:
            if names == ("model",) and [is_own for _, is_own in models] == [True]:
                # Its row in the ledger names it too.
                inbound.model = model_name(models[0][0])
            return found + models
    reader = parameters.reader(inbound.headers, path, partial(_Members, places))
    for piece in inbound.pieces:
        for start in range(0, len(piece), parameters.SLICE):
            reader.feed(piece[start : start + parameters.SLICE])
            yield
    fields = reader.end()
    return found + (reader.models if isinstance(reader, _Members) else _in_form(fields, names))


def _in_form(fields: Parameters, names: tuple[str, ...]) -> list[Named]:
    known = {bare(name): name for name in names}
    found = _single(known, ((name, value) for name, values in fields.items() for value in values))
    return [(name, True) for name in found]


def _in_query(query: bytes) -> list[str]:
    if not query:
        return []
    pairs = (part.partition("=") for part in re.split("[&;]", query.decode("latin-1")))
    return _single(_QUERY, ((unquote_plus(name), unquote_plus(value)) for name, _, value in pairs))


def _single(known: Mapping[str, str], fields: Iterator[tuple[str, str | None]]) -> list[str]:
    """The values of these fields, each of which may come once."""
    found: dict[str, str] = {}
    for name, value in fields:
        place = alias_of(name, known)
        if not place:
            continue
        if name != place:
            raise ModelNotAllowed(_ALIAS.format(place))
        if name in found:
            raise ModelNotAllowed(_TWICE)
        if value is None:
            raise ModelNotAllowed(_NOT_TEXT)
        found[name] = value
    return list(found.values())


def _checked(names: list[str], *, google: bool) -> Iterator[str]:
    """The names as they are compared with patterns."""
    for name in names:
        if not name or name != name.strip() or len(name) > MAX_MODEL or _UNSAFE.search(name):
            raise ModelNotAllowed("The request names a model that is empty, too long, or has spaces at its ends.")
        model = name
        if google and (full := _GOOGLE.match(name)):
            model = name[full.end() :]
        yield model
        _, preset, configuration = name.partition(_PRESET)
        if preset and name != preset + configuration:
            yield preset + configuration
