"""How an application is notified that its client disconnects.

To notice that while its request runs, something has to wait until the client's connection is readable. One task per
request for that costs more than parsing the request. So a server that is told by the system (`net/poller.py`) offers
the ASGI extension `scope["extensions"][EXTENSION]`:

- `["on_disconnect"](callback)` sets a function that is called in the event loop when the client of this request
  disconnects, and immediately if it already has. If the function returns true, the application's task is cancelled by
  the cancel scope of the connection.
- `["body_arrived"]()` says whether `receive` would return a piece of the body, or its end, without waiting.

An application that does not use the extension, or runs on a server without it, waits for `http.disconnect`.
"""

from __future__ import annotations

from typing import Final

EXTENSION: Final = "http.disconnect.callback"


class ClientDisconnected(OSError):
    """The client of a request has disconnected: nothing can reach it any more."""

    def __init__(self, message: str = "the client has disconnected") -> None:
        super().__init__(message)
