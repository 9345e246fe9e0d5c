"""Readers of stored records as a bad day makes them: what `retinue logs` starts instead of its own."""

import os
import signal
from collections.abc import Callable

from retinue.services.syslog import archive, query


def die(fence: Callable[[], None]) -> int:
    """Killed, as for want of memory, before there is an answer."""
    os.kill(os.getpid(), signal.SIGKILL)
    return archive.main(fence)


def answer_late(fence: Callable[[], None]) -> int:
    """After each range of ids the time is over, as if the clock had jumped."""
    query.TIME_LIMIT = -1.0  # type: ignore[misc]
    return archive.main(fence)


def tell_what_is_in_sight(fence: Callable[[], None]) -> int:
    """Behind the fence: what may be opened, and what may be called, a line each."""
    outside = os.getcwd() + "/../outside"
    fence()
    for what in (
        lambda: open("inside").close(),
        lambda: open("made", "x").close(),
        lambda: os.unlink("made"),
        lambda: open(outside).close(),
        lambda: open("../outside").close(),
        lambda: os.mkdir("folder"),
        lambda: os.kill(os.getppid(), 0),
        os.fork,
    ):
        try:
            what()
        except OSError as error:
            os.write(1, f"{error.strerror}\n".encode())
        else:
            os.write(1, b"done\n")
    return 0
