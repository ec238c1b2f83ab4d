"""A provider that needs no network: it speaks enough of OpenAI's and Anthropic's APIs for their SDKs, from a script.

`llm-proxy demo` puts it behind the proxy, and tests use it to prove what the proxy does to a request on its way.

    message     what a handler is given (Request) and what it returns (Reply): plain values, no I/O
    directions  `x-scripted-…` request headers: delays, gaps, statuses, echoes and aborts on demand
    answers     the script: deterministic texts, token counts and examples of JSON schemas
    chat        OpenAI: chat completions and completions
    responses   OpenAI: responses
    assets      OpenAI: models, embeddings, files, images, audio
    anthropic   Anthropic: messages, token counts, models
    app         the ASGI 3 application: credential, routing, and the only I/O

The same request always gets the same bytes back, except that files remember what was uploaded.
"""

from __future__ import annotations

from llm_proxy.scripted.app import ScriptedProvider
from llm_proxy.scripted.directions import ScriptedAbort

__all__ = ["ScriptedAbort", "ScriptedProvider"]
