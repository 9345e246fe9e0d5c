"""The control program's end of *LOG, for tests of a machine's end."""

import socket
from typing import Any

from retinue.pipes import wire


class Reader:
    """The control program's end."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock

    def packets(self) -> list[bytes]:
        found = []
        while True:
            try:
                found.append(self._socket.recv(wire.MAX_PACKET + 1))
            except BlockingIOError:
                return found

    def frames(self) -> list[list[Any]]:
        found = []
        for packet in self.packets():
            assert packet[0] == 0x93
            (frame,) = wire.Decoder().decode(packet)
            found.append(frame)
        return found

    def records(self) -> list[list[Any]]:
        """Of each record: severity, logger, message, fields."""
        return [frame[2][1:] for frame in self.frames()]
