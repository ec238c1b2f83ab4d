"""Which objects each endpoint creates, names and lists. An endpoint without a row may reach the whole account.

A row has methods, a path, and properties; of several that match, the first applies. In a path, `{kind}` names an object
and is judged; `*` is a part of the object before it (a message of a thread), which the provider looks for in that
object only.

Properties:

- `creates WORD`, `shows WORD`: where in the answer the ids of objects are, see `YIELDS`
- `deletes`: it deletes the object in the path
- `body WORD`: the body may name objects; unless it has one of the texts in `HINTS`, it names none
- `usage`: the answer has the usage of the object in the path, once that is complete; of a file, that of its batch
- `account`: it lists or reads objects of the whole account

Evaluations are `account`, because a run may read all stored completions of the account. Templates of prompts, voices
and models, fine-tuned ones included, are the account's: every project may use them.

OpenAI's rows are also those of providers with the same API under another prefix. Google calls a file `files/ID` in
answers, and names it by its URI in bodies; its id is what comes last. Objects of further APIs (Gemini's caches) are
never recorded, so that a body that names one is refused where a credential is shared.

Sources: https://platform.openai.com/docs/api-reference, https://docs.claude.com/en/api, https://docs.mistral.ai/api
(conversations, batch jobs), https://docs.x.ai/api-reference (deferred completions, videos), https://docs.together.ai/reference
(uploads), https://ai.google.dev/api (files).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final
from urllib.parse import unquote

from attrs import field, frozen

from db.queries.objects import NAMED

_TABLE: Final = """
POST        /v1/chat/completions                          creates completion, body chat
GET         /v1/chat/completions                          account
GET POST    /v1/chat/completions/{completion}
DELETE      /v1/chat/completions/{completion}             deletes
GET         /v1/chat/completions/{completion}/messages
GET         /v1/chat/deferred-completion/{completion}         usage
POST        /v1/completions
POST        /v1/responses                                 creates response, body items
POST        /v1/responses/compact                         body items
POST        /v1/responses/input_tokens                    body items
GET         /v1/responses/{response}                      shows response, usage
DELETE      /v1/responses/{response}                      deletes
POST        /v1/responses/{response}/cancel               usage
GET         /v1/responses/{response}/input_items
GET         /v1/conversations                             account
POST        /v1/conversations                             creates conversation, body items
GET         /v1/conversations/{conversation}
POST        /v1/conversations/{conversation}              shows conversation, body items
DELETE      /v1/conversations/{conversation}              deletes
GET         /v1/conversations/{conversation}/items
POST        /v1/conversations/{conversation}/items        creates items, body items
GET DELETE  /v1/conversations/{conversation}/items/*
GET         /v1/conversations/{conversation}/history
GET         /v1/conversations/{conversation}/messages
POST        /v1/conversations/{conversation}/restart      creates conversation, body items
POST        /v1/embeddings
GET         /v1/models
GET         /v1/models/*
DELETE      /v1/models/*                                  account
POST        /v1/moderations
GET         /v1/files                                     account
POST        /v1/files                                     creates file, body lines
POST        /v1/files/upload                              creates file, body lines
GET         /v1/files/{file}:download
GET         /v1/files/{file}
DELETE      /v1/files/{file}                              deletes
GET         /v1/files/{file}/content                      usage
GET         /v1/files/{file}/url
POST        /v1/uploads                                   creates upload, body lines
POST        /v1/uploads/{upload}/parts
POST        /v1/uploads/{upload}/complete                 creates upload_file
POST        /v1/uploads/{upload}/cancel
POST        /v1/images/generations
POST        /v1/images/edits                              body fields
POST        /v1/images/variations
GET         /v1/videos                                    account
POST        /v1/videos                                    creates video, body fields
POST        /v1/videos/generations                        creates video, body fields
POST        /v1/videos/edits                              creates video, body fields
GET         /v1/videos/{video}
DELETE      /v1/videos/{video}                            deletes
GET         /v1/videos/{video}/content
POST        /v1/videos/{video}/remix                      creates video
POST        /v1/audio/speech
POST        /v1/audio/transcriptions                      body fields
POST        /v1/audio/translations
GET         /v1/batches                                   account
POST        /v1/batches                                   creates batch, body fields
GET         /v1/batches/{batch}                           shows batch, usage
POST        /v1/batches/{batch}/cancel                    shows batch, usage
GET         /v1/batch/jobs                                account
POST        /v1/batch/jobs                                creates batch, body fields
GET         /v1/batch/jobs/{batch}                        shows batch
DELETE      /v1/batch/jobs/{batch}                        deletes
POST        /v1/batch/jobs/{batch}/cancel                 shows batch
GET         /v1/fine_tuning/jobs                          account
POST        /v1/fine_tuning/jobs                          creates job, body fields
GET         /v1/fine_tuning/jobs/{job}                    shows job
POST        /v1/fine_tuning/jobs/{job}/cancel
POST        /v1/fine_tuning/jobs/{job}/pause
POST        /v1/fine_tuning/jobs/{job}/resume
GET         /v1/fine_tuning/jobs/{job}/events
GET         /v1/fine_tuning/jobs/{job}/checkpoints
GET         /v1/vector_stores                             account
POST        /v1/vector_stores                             creates vector_store, body fields
GET         /v1/vector_stores/{vector_store}
POST        /v1/vector_stores/{vector_store}              body fields
DELETE      /v1/vector_stores/{vector_store}              deletes
POST        /v1/vector_stores/{vector_store}/search
GET         /v1/vector_stores/{vector_store}/files
POST        /v1/vector_stores/{vector_store}/files        body fields
GET POST DELETE  /v1/vector_stores/{vector_store}/files/{file}
GET         /v1/vector_stores/{vector_store}/files/{file}/content
POST        /v1/vector_stores/{vector_store}/file_batches  creates file_batch, body fields
GET         /v1/vector_stores/{vector_store}/file_batches/{file_batch}
POST        /v1/vector_stores/{vector_store}/file_batches/{file_batch}/cancel
GET         /v1/vector_stores/{vector_store}/file_batches/{file_batch}/files
GET         /v1/containers                                account
POST        /v1/containers                                creates container, body fields
GET         /v1/containers/{container}
DELETE      /v1/containers/{container}                    deletes
GET         /v1/containers/{container}/files
POST        /v1/containers/{container}/files              body fields
GET DELETE  /v1/containers/{container}/files/*
GET         /v1/containers/{container}/files/*/content
GET POST    /v1/evals                                     account
GET POST DELETE  /v1/evals/*                              account
GET POST    /v1/evals/*/runs                              account
GET POST DELETE  /v1/evals/*/runs/*                       account
POST        /v1/evals/*/runs/*/cancel                     account
GET         /v1/evals/*/runs/*/output_items               account
GET         /v1/evals/*/runs/*/output_items/*             account
GET         /v1/assistants                                account
POST        /v1/assistants                                creates assistant, body fields
GET         /v1/assistants/{assistant}
POST        /v1/assistants/{assistant}                    body fields
DELETE      /v1/assistants/{assistant}                    deletes
POST        /v1/threads                                   creates thread, body fields
POST        /v1/threads/runs                              creates thread_run, body fields
GET         /v1/threads/{thread}
POST        /v1/threads/{thread}                          body fields
DELETE      /v1/threads/{thread}                          deletes
GET         /v1/threads/{thread}/messages
POST        /v1/threads/{thread}/messages                 body fields
GET POST DELETE  /v1/threads/{thread}/messages/*
GET         /v1/threads/{thread}/runs
POST        /v1/threads/{thread}/runs                     creates run, body fields
GET         /v1/threads/{thread}/runs/{run}               usage
POST        /v1/threads/{thread}/runs/{run}
POST        /v1/threads/{thread}/runs/{run}/cancel        usage
GET         /v1/threads/{thread}/runs/{run}/steps
GET         /v1/threads/{thread}/runs/{run}/steps/*
POST        /v1/threads/{thread}/runs/{run}/submit_tool_outputs  usage
POST        /v1/messages                                  creates message, body blocks
POST        /v1/messages/count_tokens                     body blocks
GET         /v1/messages/batches                          account
POST        /v1/messages/batches                          creates message_batch, body blocks
GET         /v1/messages/batches/{message_batch}
DELETE      /v1/messages/batches/{message_batch}          deletes
GET         /v1/messages/batches/{message_batch}/results  usage
POST        /v1/messages/batches/{message_batch}/cancel
POST        /v1/complete
GET         /v1/skills                                    account
POST        /v1/skills                                    creates skill
GET         /v1/skills/{skill}
DELETE      /v1/skills/{skill}                            deletes
GET POST    /v1/skills/{skill}/versions
GET DELETE  /v1/skills/{skill}/versions/*
GET         /v1/skills/{skill}/versions/*/content
POST        /v1/classify
POST        /v1/generate
POST        /v1/ocr                                       body fields
POST        /v1/rerank
POST        /v1/summarize
POST        /v2/audio/transcriptions
POST        /v2/chat
POST        /v2/embed
POST        /v2/rerank
POST        /v1/models/*:batchGenerateContent             account
POST        /v1beta/models/*:batchGenerateContent         account
POST        /publishers/*/models/*:fetchPredictOperation  account
POST        /upload/v1beta/files                          creates uploaded_file
POST        /upload/v1/files                              creates uploaded_file
GET         /v1beta/files                                 account
GET         /v1beta/files/{file}:download
GET         /v1beta/files/{file}
DELETE      /v1beta/files/{file}                          deletes
GET         /v1beta/models
GET         /v1beta/models/*
POST        /v1beta/models/*:generateContent              body contents
POST        /v1/models/*:generateContent                  body contents
POST        /publishers/*/models/*:generateContent        body contents
POST        /v1beta/models/*:streamGenerateContent        body contents
POST        /v1/models/*:streamGenerateContent            body contents
POST        /publishers/*/models/*:streamGenerateContent  body contents
POST        /v1beta/models/*:countTokens                  body contents
POST        /v1beta/models/*:embedContent                 body contents
POST        /v1beta/models/*:batchEmbedContents           body contents
POST        /v1beta/models/*:predict                      body contents
POST        /v1beta/models/*:predictLongRunning           body contents
POST        /v1/models/*:countTokens                      body contents
POST        /v1/models/*:embedContent                     body contents
POST        /v1/models/*:batchEmbedContents               body contents
POST        /v1/models/*:predict                          body contents
POST        /v1/models/*:predictLongRunning               body contents
POST        /publishers/*/models/*:countTokens            body contents
POST        /publishers/*/models/*:computeTokens          body contents
POST        /publishers/*/models/*:embedContent           body contents
POST        /publishers/*/models/*:predict                body contents
POST        /publishers/*/models/*:predictLongRunning     body contents
POST        /publishers/*/models/*:rawPredict             body contents
POST        /publishers/*/models/*:streamRawPredict       body contents
POST        /chat/completions                             body chat
GET         /models
POST        /v1/fim/completions
POST        /v1/agents/completions                        body chat
POST        /v1/chat/moderations
POST        /v1/classifications
POST        /v1/chat/classifications
POST        /v1/tokenize-text
GET         /v1/language-models
GET         /v1/language-models/*
GET         /v1/image-generation-models
GET         /v1/image-generation-models/*
GET         /v1/providers
GET         /v1/models/*/*/endpoints
POST        /v1/embed
POST        /v1/tokenize
POST        /v1/detokenize
POST        /v1/score
POST        /tokenize
POST        /detokenize
POST        /pooling
POST        /classify
POST        /score
POST        /rerank
POST        /guardrail/*/version/*/apply
POST        /model/*/count-tokens                         body locations
POST        /model/*/converse                             body locations
POST        /model/*/converse-stream                      body locations
POST        /model/*/invoke                               body locations
POST        /model/*/invoke-with-response-stream          body locations
GET         /api/tags
GET         /api/ps
GET         /api/version
POST        /api/show
POST        /api/chat
POST        /api/embed
POST        /api/generate
"""

#: Where ids are in an answer, by the word of a row: a path of names, through lists, and the kind of the object.
YIELDS: Final[Mapping[str, Mapping[str, str]]] = {
    "completion": {
        "id": "completion",
        "request_id": "deferred_completion",
        "choices.message.audio.id": "audio",
        "choices.delta.audio.id": "audio",
    },
    "response": {"id": "response", "output.id": "item", "output.container_id": "container"},
    "items": {"data.id": "item"},
    "batch": {
        "id": "batch",
        "output_file_id": "batch_output",
        "error_file_id": "file",
        # Mistral's, and Together's.
        "output_file": "batch_output",
        "error_file": "file",
        "job.id": "batch",
    },
    # OpenAI's; and Mistral's, with the files that its tools have made.
    "conversation": {
        "id": "conversation",
        "conversation_id": "conversation",
        "outputs.content.file_id": "file",
    },
    # OpenAI's, and xAI's.
    "video": {"id": "video", "request_id": "video"},
    "job": {"id": "job", "result_files": "file"},
    "upload_file": {"file.id": "file"},
    "uploaded_file": {"file.name": NAMED},
    "thread_run": {"id": "run", "thread_id": "thread"},
    # A container, and the files that the code in it has made.
    "message": {"container.id": "container", "content.content.content.file_id": "file"},
}

#: Texts of which a body has at least one if it names an object, by the word of a row. Only an escape could hide one.
HINTS: Final[Mapping[str, Sequence[bytes]]] = {
    # Google's parser takes names in other quotes, and without any.
    "chat": (b"file_id", b'"audio"', b"cached"),
    "items": (
        *(b"file_id", b"response_id", b'"conversation"', b"vector_store_id", b"container", b"skill_id"),
        *(b"library_ids", b'"id"'),
    ),
    "contents": (
        *(b"cached", b"video", b"fileUri", b"file_uri", b"fileSearchStore", b"file_search_store"),
        *(b"ragCorp", b"rag_corp", b"ragFileIds", b"rag_file_ids", b"gcsUri", b"gcs_uri"),
        *(b"datastore", b"dataStore", b"data_store", b"vertexAiSearch", b"vertex_ai_search"),
        *(b"storageUri", b"storage_uri"),
    ),
    "locations": (b"s3Location",),
    "blocks": (b"file_id", b'"container"', b"skill_id"),
    # The input of a batch, whose lines are requests.
    "lines": (b"batch",),
    # Such requests are few and their bodies short: they are always read.
    "fields": (b"",),
}


#: Texts of which a request has at least one if its answer has ids at all, by the word of a row.
_REQUESTED: Final[Mapping[str, Sequence[bytes]]] = {
    "completion": (b'"store"', b'"audio"', b'"deferred"'),
    "message": (b"container", b"code_execution"),
}


@frozen(eq=False)
class ObjectEndpoint:
    """A row.

    Attributes:
        yields: where in the answer the ids of objects are, and their kinds.
        requested: if not empty, the answer has ids only if the body has one of these texts.
        hints: if not empty, the body may name objects, and has one of these texts if it does.
        lines: it may be the input of a batch.
        deletes: the object that the path names.
        usage: the answer may have the usage of the object that the path names.
        account: may list or read objects of the whole account; so may an endpoint without a row, which is not `known`.
    """

    yields: Mapping[str, str] = field(factory=dict)
    requested: Sequence[bytes] = ()
    hints: Sequence[bytes] = ()
    lines: bool = False
    deletes: bool = False
    usage: bool = False
    account: bool = False
    known: bool = True


#: What other providers put before, or in the place of, the `/v1` of OpenAI's and Anthropic's paths.
_PREFIX: Final = re.compile(
    rb"/(?:api|openai|anthropic|compatibility)/v1(?=/)|/(?:v1beta/openai|endpoints/openapi|beta)(?=/)"
    rb"|(?:/openai)?/deployments/[^/]+(?=/)|/openai(?=/)"
    # Azure's, behind the path of its base URL.
    rb"|(?=/(?:assistants|batches|files|fine_tuning|models|responses|threads|uploads|vector_stores)(?:/|\Z))"
)

_COLON: Final = re.compile(rb"%3a", re.IGNORECASE)

_UNKNOWN: Final = ObjectEndpoint(account=True, known=False)
_PLACEHOLDER: Final = re.compile(r"\{[a-z_]+\}|\*")


class Table:
    """The rows, compiled.

    Attributes:
        rows: method, path and properties of each, as written.
    """

    def __init__(self, text: str) -> None:
        self.rows: list[tuple[str, str, ObjectEndpoint]] = []
        self._literal: dict[tuple[str, bytes], ObjectEndpoint] = {}
        self._others: list[tuple[str, re.Pattern[bytes], ObjectEndpoint]] = []
        for line in text.strip().splitlines():
            match = re.fullmatch(r"([A-Z ]+?) +(/\S+) *(.*)", line)
            if match is None:
                raise ValueError(line)
            endpoint = _endpoint(match[3])
            for method in match[1].split():
                self.rows.append((method, match[2], endpoint))
                if _PLACEHOLDER.search(match[2]):
                    self._others.append((method, _expression(match[2]), endpoint))
                else:
                    self._literal[method, match[2].encode()] = endpoint

    def find(self, method: str, path: bytes) -> tuple[ObjectEndpoint, tuple[str, ...]]:
        """The row of a request, and the ids in its path."""
        if method == "HEAD":
            method = "GET"
        found = self._literal.get((method, path))
        if found is None and (prefix := _PREFIX.match(path)) is not None:
            path = b"/v1" + path[prefix.end() :]
            found = self._literal.get((method, path))
        if found is not None:
            return found, ()
        if b"%" in path:
            # Behind it may be the verb of a model.
            path = _COLON.sub(b":", path)
        for row_method, expression, endpoint in self._others:
            if row_method == method and (match := expression.fullmatch(path)) is not None:
                # The provider decodes what a path escapes.
                return endpoint, tuple(unquote(group.decode("ascii")) for group in match.groups())
        return _UNKNOWN, ()


def _endpoint(properties: str) -> ObjectEndpoint:
    words = dict.fromkeys(("creates", "shows", "body", "deletes", "usage", "account"), "")
    for each in filter(None, properties.split(", ")):
        key, _, word = each.partition(" ")
        words[key] = word or key
    shown = words["creates"] or words["shows"]
    yields = YIELDS.get(shown, {"id": shown}) if shown else {}
    if words["shows"]:
        # It was created before: only what came into being since is new.
        yields = {place: kind for place, kind in yields.items() if place != "id"}
    requested, hints = _REQUESTED.get(shown, ()), HINTS.get(words["body"], ())
    flags = (words["body"] == "lines", bool(words["deletes"]), bool(words["usage"]), bool(words["account"]))
    return ObjectEndpoint(yields, requested, hints, *flags)


def _expression(path: str) -> re.Pattern[bytes]:
    parts = re.split(f"({_PLACEHOLDER.pattern})", path)
    found = "".join(
        re.escape(part) if not index % 2 else "[^/]+" if part == "*" else "([^/]+)" for index, part in enumerate(parts)
    )
    return re.compile(found.encode())


TABLE: Final = Table(_TABLE)
