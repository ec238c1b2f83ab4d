"""The control plane: a JSON API behind the management token, and the open routes beside it.

- `context`: what the composition root hands in
- `fields`: tables of fields, which read and describe what clients send
- `operations`: tables of operations, and all that is the same for each of them
- `projects`, `tokens`, `requests`: one file per resource
- `pages`: keyset paging
- `auth`: the management token
- `system`: `/health`, `/live`, `/ready`, the metrics and `/openapi.json`
- `openapi`: the document, made from the tables
"""

from __future__ import annotations

from quart import Quart
from werkzeug.exceptions import HTTPException

from llm_proxy.api import openapi, operations, projects, requests, system, tokens
from llm_proxy.api.context import Context

__all__ = ["Context", "register"]


def register(app: Quart, context: Context) -> None:
    """Put the control plane's routes on an app, and make its own errors JSON."""
    resources = (projects.resource(context.providers, context.default_provider), tokens.RESOURCE, requests.RESOURCE)
    document = openapi.document(resources, system.paths(context.metrics_path), context.version)
    # The framework would otherwise redirect `//` to a URL made from the client's own Host header.
    app.url_map.merge_slashes = False
    app.register_blueprint(operations.blueprint(context, resources))
    app.register_blueprint(system.blueprint(context, document))
    app.register_error_handler(HTTPException, operations.answer_http_error)
