"""The container's health check: exits 0 when the server in this container says that it is ready.

It reads `LISTEN_ADDR` and `ENABLE_TLS` as the server does. The certificate is not verified: it is made for another
name than the loopback's.
"""

from __future__ import annotations

import http.client
import os
import ssl
import sys

#: Seconds; below the timeout of the check itself.
_TIMEOUT = 2.0


def main() -> int:
    """Ask `/ready`."""
    host, _, port = os.environ.get("LISTEN_ADDR", ":8080").rpartition(":")
    host = host.strip("[]")
    host = "127.0.0.1" if host in ("", "0.0.0.0", "::") else host  # noqa: S104 - an address to compare with
    connection: http.client.HTTPConnection
    if os.environ.get("ENABLE_TLS", "").lower() in ("1", "true", "yes", "on"):
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        connection = http.client.HTTPSConnection(host, int(port), timeout=_TIMEOUT, context=context)
    else:
        connection = http.client.HTTPConnection(host, int(port), timeout=_TIMEOUT)
    try:
        connection.request("GET", "/ready")
        answer = connection.getresponse()
        words = answer.read(300).decode("utf-8", "replace")
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        print(f"not reachable: {reason}")  # noqa: T201 - what `docker inspect` shows
        return 1
    finally:
        connection.close()
    print(answer.status, words)  # noqa: T201 - the output of the health check
    return 0 if answer.status == http.client.OK else 1


if __name__ == "__main__":
    sys.exit(main())
