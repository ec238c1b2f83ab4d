"""A relay to a database server that can lose one exchange, to end a connection in the middle of a commit."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum, auto

from attrs import define

from tests.db.threaded_server import threaded_server


class Loss(Enum):
    """What becomes of the next thing that the client says."""

    NONE = auto()  #: it arrives, and its answer too
    REQUEST = auto()  #: it does not reach the server
    ANSWER = auto()  #: the server does it, and the answer does not come back


@define(eq=False)
class Relay:
    """Forwards connections to a server. When `loss` is set, it happens once, and that connection ends."""

    port: int
    _server: tuple[str, int]
    loss: Loss = Loss.NONE

    def forward(self, client: socket.socket) -> None:
        """Forward one connection to its end."""
        with client, socket.create_connection(self._server) as server:
            back = threading.Thread(target=self._answer, args=(server, client))
            back.start()
            while data := _read(client):
                if self._loses(Loss.REQUEST):
                    break
                server.sendall(data)
            _end(server)
            _end(client)
            back.join()

    def _loses(self, what: Loss) -> bool:
        if self.loss is not what:
            return False
        self.loss = Loss.NONE
        return True

    def _answer(self, server: socket.socket, client: socket.socket) -> None:
        while data := _read(server):
            if self._loses(Loss.ANSWER):
                break
            client.sendall(data)
        _end(client)
        _end(server)


def _read(source: socket.socket) -> bytes:
    try:
        return source.recv(65536)
    except OSError:
        return b""


def _end(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # it has ended already


@contextmanager
def relay_to(host: str, port: int) -> Iterator[Relay]:
    """A relay on a port of its own; its users must have closed their connections at the end."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        relay = Relay(listener.getsockname()[1], (host, port))
        with threaded_server(listener, relay.forward):
            yield relay
