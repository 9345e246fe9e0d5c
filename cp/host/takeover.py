"""How a program takes over the office of the control program from the one before it."""

import select
import socket
from typing import Any

from retinue.cp.host import libc
from retinue.cp.host.errors import HostLost
from retinue.cp.host.interface import Kept, Resident, Restored
from retinue.cp.host.link import LENT_MAX, Link, field, send_now
from retinue.cp.host.process import TITLE

__all__ = ["wait_restored"]

UNSENT_MAX = 65536
"""Messages that may wait for the nucleus: everything of a large system kept at once."""


def wait_restored(sock: socket.socket) -> tuple[Link, Restored]:
    """Say that this process has loaded, and wait until it is the control program.

    Blocks, and so is for a process before its event loop. Whatever is to be imported should be: from here on it counts.

    :param sock: the link, which the process was started with.
    :raises HostLost: the nucleus is gone.
    """
    link = Link(sock, longest=UNSENT_MAX, most=LENT_MAX)
    send_now(link, {"verb": "loaded"})
    begin, _ = _next(link)
    libc.set_process_name(TITLE)
    residents: dict[tuple[str, int], Resident] = {}
    for _ in range(field(begin, "residents", int)):
        one, _ = _next(link)
        key = field(one, "machine", str), field(one, "generation", int)
        residents[key] = Resident(field(one, "pid", int), tuple(field(one, "seal", list)))
    kept: dict[str, Kept] = {}
    while len(kept) < field(begin, "kept", int):
        message, descriptors = _next(link)
        for key, note, count in field(message, "all", list):
            kept[key] = Kept(note, tuple(descriptors[:count]))
            del descriptors[:count]
    return link, Restored(field(begin, "first", bool), field(begin, "died", str), residents, kept)


def _next(link: Link) -> tuple[dict[str, Any], list[int]]:
    poll = select.poll()
    poll.register(link.fileno(), select.POLLIN)
    while True:
        try:
            received = link.receive()
        except BlockingIOError:
            poll.poll()
            continue
        if received is None:
            raise HostLost
        return received
