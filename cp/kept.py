"""What a control program has of the one before it, or makes, if it is the first, for all that will follow."""

import os
import socket
import time
from typing import Final

from retinue.cp.checking import OURS
from retinue.cp.host.interface import Host
from retinue.cp.journal import Journal, JournalUnusable
from retinue.cp.operator_socket import listen_operator, take_listener

CRITICAL: Final = 2  # RFC 5424

# Keys of what is kept; other keys are those of who keeps them.
OPERATORS: Final = "operators"
JOURNAL: Final = "journal"


def kept_operators(host: Host, runtime: str | os.PathLike[str]) -> socket.socket:
    """Where operators connect: one socket for as long as the system runs, so that they can wait for a new CP."""
    if (kept := host.restored.kept.get(OPERATORS)) is not None:
        return take_listener(*kept.descriptors)
    listener = listen_operator(runtime)
    host.keep(OPERATORS, {}, [listener.fileno()])
    return listener


def kept_journal(host: Host) -> Journal:
    """Where records are until they are stored: kept for as long as the system runs.

    One that cannot be used, such as that of another version, is given up for a new one, which says so first.
    """
    trouble = None
    if (kept := host.restored.kept.get(JOURNAL)) is not None:
        try:
            return Journal.adopt(*kept.descriptors)
        except JournalUnusable as exc:
            trouble = (
                f"-- {exc}: records that were not stored are lost, and of each machine's next record the gap before it "
                "counts all that it had written --"
            )
    journal = Journal.create()
    if trouble is not None:
        journal.append("CP", 0, [[time.time(), CRITICAL, OURS, trouble, {}]])
    host.keep(JOURNAL, {}, [journal.fileno()])
    return journal
