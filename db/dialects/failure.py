"""The meaning of a driver's error, without the driver's own text."""

from __future__ import annotations

import errno
import re
import socket
import ssl
from enum import Enum, auto

from attrs import frozen


class FailureKind(Enum):
    """How to continue after an error."""

    CONTENTION = auto()  #: lost against another transaction: run the whole function again
    LOCKED = auto()  #: waited in vain for a lock of another transaction; else as CONTENTION
    DISCONNECTED = auto()  #: the connection was lost; on a fresh one the function may run again
    UNANSWERED = auto()  #: no word of what became of the statement; the connection is of no more use
    UNAVAILABLE = auto()  #: the server cannot serve now, or took too long, and said so
    READ_ONLY = auto()  #: a write where only reading is possible
    DUPLICATE = auto()  #: unique or primary key
    REFERENCE = auto()  #: foreign key
    SCHEMA = auto()  #: no such table or column
    REFUSED = auto()  #: anything else that the database said no to


@frozen
class Failure:
    """An error that was understood.

    Attributes:
        words: what happened, to follow the name of the database and a colon: lower case, no full stop.
    """

    kind: FailureKind
    words: str

    def ends_connection(self, *, writes: bool) -> bool:
        """Whether the connection, and all others of its pool, are to be given up.

        So it is also for a writer on a server that only allows reading: after a failover the name of the server may
        lead elsewhere by now.
        """
        return self.kind is FailureKind.DISCONNECTED or (self.kind is FailureKind.READ_ONLY and writes)


CONTENTION = Failure(FailureKind.CONTENTION, "the transaction kept losing against others; try again")
LOCKED = Failure(FailureKind.LOCKED, "another transaction holds a row that is needed")
DISCONNECTED = Failure(FailureKind.DISCONNECTED, "the connection was lost")
DUPLICATE = Failure(FailureKind.DUPLICATE, "a row with the same unique value exists already")
REFERENCE = Failure(FailureKind.REFERENCE, "a row that is referred to does not exist, or is still referred to")
SCHEMA = Failure(FailureKind.SCHEMA, "a table or column is missing; run 'llm-proxy migrate up'")
READ_ONLY = Failure(FailureKind.READ_ONLY, "it only allows reading: it is a replica, a full or a read-only server")
REFUSED = Failure(FailureKind.REFUSED, "a statement was refused")
LOGIN = Failure(FailureKind.UNAVAILABLE, "the user name or password was refused")
NO_DATABASE = Failure(FailureKind.UNAVAILABLE, "there is no such database, or this user may not use it")
FULL_HOUSE = Failure(
    FailureKind.UNAVAILABLE, "it has no connection left: lower DATABASE_POOL_SIZE, or raise the server's limit"
)
TOO_SLOW = Failure(FailureKind.UNAVAILABLE, "a statement took longer than DATABASE_STATEMENT_TIMEOUT")
NOT_SERVING = Failure(FailureKind.UNAVAILABLE, "it is starting, stopping, or temporarily unavailable")
DISK_FULL = Failure(FailureKind.UNAVAILABLE, "its disk or a table is full")
STORAGE = Failure(
    FailureKind.UNAVAILABLE,
    "its storage failed: its disk, a damaged table or an internal error; its own log says which",
)
#: Not a refusal of a row: the rows are kept until an administrator has fixed it.
PRIVILEGE = Failure(FailureKind.UNAVAILABLE, "this user lacks a privilege on its tables")
STRANGER = Failure(FailureKind.UNAVAILABLE, "it does not let this host connect")
NO_TLS = Failure(FailureKind.UNAVAILABLE, "the server does not offer TLS, which the URL asks for")
SILENT = Failure(FailureKind.UNANSWERED, "no answer within the deadline")
CLIENT_CERTIFICATE = Failure(
    FailureKind.UNAVAILABLE,
    "the server requires a client certificate, or another one: see DATABASE_TLS_CERT and DATABASE_TLS_KEY",
)

#: OpenSSL's names for the alerts of RFC 8446 section 6.2 that are about the client's certificate.
_CLIENT_REFUSED = re.compile("ALERT_(UNKNOWN_CA|(BAD_|UNSUPPORTED_)?CERTIFICATE)")

_PROTOCOL = Failure(FailureKind.UNAVAILABLE, "what answers there does not speak its protocol")

#: What the operating system said, the special before the general.
_NETWORK: tuple[tuple[type[BaseException], Failure], ...] = (
    (ssl.SSLEOFError, DISCONNECTED),
    (ssl.SSLZeroReturnError, DISCONNECTED),
    (ssl.SSLError, Failure(FailureKind.UNANSWERED, "TLS failed")),
    (TimeoutError, SILENT),
    (
        ConnectionRefusedError,
        Failure(FailureKind.UNAVAILABLE, "connection refused: is the server running, on that port?"),
    ),
    (ConnectionError, DISCONNECTED),
    (socket.gaierror, Failure(FailureKind.UNAVAILABLE, "its host name cannot be resolved")),
    (FileNotFoundError, Failure(FailureKind.UNAVAILABLE, "there is no socket at that path")),
    (PermissionError, Failure(FailureKind.UNAVAILABLE, "access to its socket is not permitted")),
    (OSError, Failure(FailureKind.UNANSWERED, "it cannot be reached")),
)


def network_failure(cause: BaseException | None) -> Failure:
    """What it means that a connection could not be made, or broke, because of `cause`; None is its plain end."""
    if cause is None:
        return DISCONNECTED
    if isinstance(cause, TimeoutError) and cause.errno == errno.ETIMEDOUT:
        return DISCONNECTED  # the kernel's word, for a connection that has been dead for a while; ours has no number
    if isinstance(cause, ssl.SSLCertVerificationError):
        return Failure(FailureKind.UNAVAILABLE, f"the server's certificate was not accepted: {cause.verify_message}")
    if isinstance(cause, ssl.SSLError) and _CLIENT_REFUSED.search(getattr(cause, "reason", None) or ""):
        return CLIENT_CERTIFICATE
    return next((failure for kind, failure in _NETWORK if isinstance(cause, kind)), _PROTOCOL)
