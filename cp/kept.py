"""What a control program has of the one before it, or makes, if it is the first, for all that will follow."""

import os
import socket
from typing import Final

from retinue.cp.host.interface import Host
from retinue.cp.journal import Journal
from retinue.cp.operator_socket import listen_operator, take_listener

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
    """Where records are until they are stored: kept for as long as the system runs."""
    if (kept := host.restored.kept.get(JOURNAL)) is not None:
        return Journal.adopt(*kept.descriptors)
    journal = Journal.create()
    host.keep(JOURNAL, {}, [journal.fileno()])
    return journal
