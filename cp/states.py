"""The states of a machine and what leads from one to the next, as a table."""

from enum import StrEnum
from typing import Final


class State(StrEnum):
    """Where a machine stands."""

    DEFINED = "DEFINED"  # in the topology, never started
    DORMANT = "DORMANT"  # started by the first who connects
    STARTING = "STARTING"  # it has a process, or is about to
    READY = "READY"  # its program said so
    STOPPING = "STOPPING"  # asked to end
    STOPPED = "STOPPED"  # ended in order, and stays so
    ABEND = "ABEND"  # ended out of order
    WAITING = "WAITING"  # will be started after a pause, or when there is room in real storage
    BROKEN = "BROKEN"  # ended out of order, and stays so


class Happening(StrEnum):
    """What can happen to a machine."""

    START = "start"
    READY = "ready"
    REPLACE = "replace"  # a successor that is ready has taken its place
    REST = "rest"  # it is started on demand, and nobody needs it
    STOP = "stop"  # the operator, or the end of the system
    FINISH = "finish"  # its process ended as it should
    DIE = "die"  # its process ended otherwise
    PAUSE = "pause"  # before it is started, or until there is room in real storage
    GIVE_UP = "give up"


S, H = State, Happening

TABLE: Final[dict[tuple[State, Happening], State]] = {
    (S.DEFINED, H.START): S.STARTING,
    (S.DEFINED, H.PAUSE): S.WAITING,
    (S.DEFINED, H.STOP): S.STOPPED,
    (S.DEFINED, H.REST): S.DORMANT,
    (S.DORMANT, H.START): S.STARTING,
    (S.DORMANT, H.PAUSE): S.WAITING,
    (S.DORMANT, H.STOP): S.STOPPED,
    (S.STARTING, H.READY): S.READY,
    (S.STARTING, H.STOP): S.STOPPING,
    (S.STARTING, H.FINISH): S.STOPPED,
    (S.STARTING, H.DIE): S.ABEND,
    (S.READY, H.REPLACE): S.READY,
    (S.READY, H.STOP): S.STOPPING,
    (S.READY, H.FINISH): S.STOPPED,
    (S.READY, H.DIE): S.ABEND,
    (S.STOPPING, H.FINISH): S.STOPPED,
    (S.STOPPING, H.DIE): S.STOPPED,
    (S.STOPPING, H.REST): S.DORMANT,
    (S.STOPPING, H.GIVE_UP): S.BROKEN,
    (S.STOPPED, H.START): S.STARTING,
    (S.STOPPED, H.REST): S.DORMANT,
    (S.ABEND, H.START): S.STARTING,
    (S.ABEND, H.STOP): S.STOPPED,
    (S.ABEND, H.REST): S.DORMANT,
    (S.ABEND, H.PAUSE): S.WAITING,
    (S.ABEND, H.GIVE_UP): S.BROKEN,
    (S.WAITING, H.START): S.STARTING,
    (S.WAITING, H.PAUSE): S.WAITING,
    (S.WAITING, H.STOP): S.STOPPED,
    (S.WAITING, H.GIVE_UP): S.BROKEN,
    (S.BROKEN, H.START): S.STARTING,
    (S.BROKEN, H.STOP): S.STOPPED,
}

# A machine in one of these will not become ready by itself.
FINAL: Final = frozenset({S.STOPPED, S.BROKEN})
# One that needs no process to be as it should.
AT_REST: Final = FINAL | {S.DORMANT}
