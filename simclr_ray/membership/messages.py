"""Lines of JSON over a TCP connection."""

from __future__ import annotations

import json
import socket
from typing import Any

Message = dict[str, Any]
LIMIT = 1 << 20
"""Bytes of one message at most: a stranger that sends more is no worker."""


class Connection:
    """One end; messages come whole and in order. Not for several readers at a time."""

    def __init__(self, end: socket.socket) -> None:
        self.socket, self._received = end, b""
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def fileno(self) -> int:
        return self.socket.fileno()

    def send(self, message: Message) -> None:
        """Raises OSError if the other end is gone."""
        self.socket.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> list[Message]:
        """The messages of one read, which blocks until there is something to read.

        Raises OSError if the other end is gone, and ValueError for what is no message.
        """
        content = self.socket.recv(1 << 16)
        if not content:
            raise ConnectionResetError("the other end has closed the connection")
        *lines, self._received = (self._received + content).split(b"\n")
        if len(self._received) > LIMIT:
            raise ValueError("no end of a message")
        messages = [json.loads(line) for line in lines]
        if not all(isinstance(message, dict) for message in messages):
            raise ValueError("no message")
        return messages

    def close(self) -> None:
        self.socket.close()
