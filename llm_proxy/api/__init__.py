"""The management API, JSON over HTTP: resources that need the management token, and the open routes.

- `schema`: the types of fields; readers that report every mistake of a body or a query
- `operations`: from an operation's declaration to its route; errors as responses
- `projects`, `credentials`, `tokens`, `limits`, `requests`, `usage`: one file per resource; `requests` has the refused
  ones too
- `audit`: the audit log
- `pages`: keyset paging, CSV
- `auth`: the management token
- `system`: `/health`, `/live`, `/ready`, the metrics, `/openapi.json`, and reloading
- `openapi`: the OpenAPI document
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Final

from quart import Quart
from werkzeug.exceptions import HTTPException

from llm_proxy import __version__
from llm_proxy.api import (
    audit,
    credentials,
    limits,
    openapi,
    operations,
    projects,
    requests,
    system,
    tokens,
    usage,
)
from llm_proxy.services import Services

#: What the management API has, in the order of its document.
RESOURCES: Final = (
    projects.RESOURCE,
    credentials.RESOURCE,
    tokens.RESOURCE,
    limits.RESOURCE,
    requests.RESOURCE,
    requests.REFUSALS,
    usage.RESOURCE,
    audit.RESOURCE,
    system.RESOURCE,
)


def register(app: Quart, services: Services, clock: Callable[[], datetime] = operations.utc_now) -> None:
    """Add the routes of the management API to an app, and answer the framework's own errors in JSON."""
    settings = services.settings
    open_paths = system.paths(settings.metrics_path if settings.enable_metrics else None)
    # The framework would otherwise redirect `//` to a URL made from the client's own Host header.
    app.url_map.merge_slashes = False
    refused = audit.RefusedCalls(services.database, services.nursery)
    app.register_blueprint(operations.blueprint(services, RESOURCES, clock, refused.add))
    app.register_blueprint(system.blueprint(services, openapi.document(RESOURCES, open_paths, __version__)))
    app.register_error_handler(HTTPException, operations.answer_http_error)
