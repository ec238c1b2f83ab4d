"""The providers that are there without a file, with the endpoints that applications use.

Left out on purpose: what administers the account behind the key (organisation, projects, keys, webhooks, credential
vaults), what carries long-lived secrets of its own (client secrets), what needs a protocol upgrade (realtime), and what
answers with an address to which SDKs would send the token of the proxy (a batch of Anthropic's and its `results_url`).
"""

from __future__ import annotations

from llm_proxy.gateway.providers.provider import Provider, Timeouts, split_base_url

OPENAI_URL = "https://api.openai.com"
ANTHROPIC_URL = "https://api.anthropic.com"

#: As many as there may be requests at once: with fewer, a busy proxy opens and closes connections all the time.
MAX_IDLE_CONNECTIONS = 1000

_METHODS = frozenset({"GET", "POST", "DELETE"})

_OPENAI = """
/v1/chat/completions
/v1/chat/completions/{id}
/v1/chat/completions/{id}/messages
/v1/completions
/v1/responses
/v1/responses/compact
/v1/responses/input_tokens
/v1/responses/{id}
/v1/responses/{id}/cancel
/v1/responses/{id}/input_items
/v1/conversations
/v1/conversations/{id}
/v1/conversations/{id}/items
/v1/conversations/{id}/items/{item}
/v1/embeddings
/v1/models
/v1/models/{model}
/v1/moderations
/v1/files
/v1/files/{id}
/v1/files/{id}/content
/v1/uploads
/v1/uploads/{id}/parts
/v1/uploads/{id}/complete
/v1/uploads/{id}/cancel
/v1/images/generations
/v1/images/edits
/v1/images/variations
/v1/videos
/v1/videos/{id}
/v1/videos/{id}/content
/v1/videos/{id}/remix
/v1/audio/speech
/v1/audio/transcriptions
/v1/audio/translations
/v1/batches
/v1/batches/{id}
/v1/batches/{id}/cancel
/v1/fine_tuning/jobs
/v1/fine_tuning/jobs/{id}
/v1/fine_tuning/jobs/{id}/cancel
/v1/fine_tuning/jobs/{id}/pause
/v1/fine_tuning/jobs/{id}/resume
/v1/fine_tuning/jobs/{id}/events
/v1/fine_tuning/jobs/{id}/checkpoints
/v1/vector_stores
/v1/vector_stores/{id}
/v1/vector_stores/{id}/search
/v1/vector_stores/{id}/files
/v1/vector_stores/{id}/files/{file}
/v1/vector_stores/{id}/files/{file}/content
/v1/vector_stores/{id}/file_batches
/v1/vector_stores/{id}/file_batches/{batch}
/v1/vector_stores/{id}/file_batches/{batch}/cancel
/v1/vector_stores/{id}/file_batches/{batch}/files
/v1/containers
/v1/containers/{id}
/v1/containers/{id}/files
/v1/containers/{id}/files/{file}
/v1/containers/{id}/files/{file}/content
/v1/evals
/v1/evals/{id}
/v1/evals/{id}/runs
/v1/evals/{id}/runs/{run}
/v1/evals/{id}/runs/{run}/cancel
/v1/evals/{id}/runs/{run}/output_items
/v1/evals/{id}/runs/{run}/output_items/{item}
/v1/assistants
/v1/assistants/{id}
/v1/threads
/v1/threads/runs
/v1/threads/{id}
/v1/threads/{id}/messages
/v1/threads/{id}/messages/{message}
/v1/threads/{id}/runs
/v1/threads/{id}/runs/{run}
/v1/threads/{id}/runs/{run}/cancel
/v1/threads/{id}/runs/{run}/steps
/v1/threads/{id}/runs/{run}/steps/{step}
/v1/threads/{id}/runs/{run}/submit_tool_outputs
"""

_ANTHROPIC = """
/v1/messages
/v1/messages/count_tokens
/v1/messages/batches
/v1/messages/batches/{id}/cancel
/v1/complete
/v1/models
/v1/models/{model}
/v1/files
/v1/files/{id}
/v1/files/{id}/content
/v1/skills
/v1/skills/{id}
/v1/skills/{id}/versions
/v1/skills/{id}/versions/{version}
/v1/skills/{id}/versions/{version}/content
"""

#: SDKs read a batch before they fetch its results, so that they show this instead of sending the token elsewhere.
_BATCH_REASON = (
    "Batches cannot be read through this proxy: Anthropic answers with an absolute results_url, and SDKs would send"
    " the token of this proxy there. Poll with GET /v1/messages/batches (client.messages.batches.list()). For the"
    " results, ask the operator to allow /v1/messages/batches/{id}/results in allowed_endpoints, and download them with"
    ' client.get("/v1/messages/batches/ID/results", cast_to=str) instead of client.messages.batches.results().'
)
_ANTHROPIC_DENIED = dict.fromkeys(("/v1/messages/batches/{id}", "/v1/messages/batches/{id}/results"), _BATCH_REASON)


def default_timeouts(request_timeout: float) -> Timeouts:
    """The deadlines of a provider that sets none; `request_timeout` is the setting of that name, in seconds."""
    return Timeouts(connect=10.0, response_header=request_timeout, idle=90.0, request=request_timeout)


def built_in(openai_url: str, request_timeout: float) -> dict[str, Provider]:
    """OpenAI (at `openai_url`) and Anthropic, by name. Raises `ValueError` where the URL cannot be used."""
    openai, openai_path = split_base_url(openai_url)
    anthropic, anthropic_path = split_base_url(ANTHROPIC_URL)
    timeouts = default_timeouts(request_timeout)
    return {
        "openai": Provider(
            name="openai",
            origin=openai,
            base_path=openai_path,
            auth="bearer",
            shape="openai",
            allowed_endpoints=tuple(_OPENAI.split()),
            allowed_methods=_METHODS,
            timeouts=timeouts,
            max_idle_conns_per_host=MAX_IDLE_CONNECTIONS,
        ),
        "anthropic": Provider(
            name="anthropic",
            origin=anthropic,
            base_path=anthropic_path,
            auth="x-api-key",
            shape="anthropic",
            allowed_endpoints=tuple(_ANTHROPIC.split()),
            denied_endpoints=_ANTHROPIC_DENIED,
            allowed_methods=_METHODS,
            timeouts=timeouts,
            max_idle_conns_per_host=MAX_IDLE_CONNECTIONS,
        ),
    }
