"""What a driver's error means, without the driver's words."""

from __future__ import annotations

from enum import Enum, auto

from attrs import frozen


class Kind(Enum):
    """How to go on after an error."""

    CONTENTION = auto()  #: lost against another transaction: run the whole function again
    DISCONNECTED = auto()  #: the connection has gone; on a fresh one the function may run again
    UNAVAILABLE = auto()  #: the server cannot serve now, or took too long
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

    kind: Kind
    words: str
