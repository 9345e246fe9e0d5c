"""The message pipe: a path between two ends, authorised once, bidirectional, boundaries kept.

:mod:`~retinue.pipes.wire` (frames), :mod:`~retinue.pipes.session` (the state machine, without I/O),
:mod:`~retinue.pipes.transport` (socket or memory) and :mod:`~retinue.pipes.path` (the trio face) stand on each other in
that order. Nothing here knows of machines.
"""

from retinue.pipes.draft import Draft as Draft
from retinue.pipes.errors import AccessDenied as AccessDenied
from retinue.pipes.errors import LimitExceeded as LimitExceeded
from retinue.pipes.errors import PathClosed as PathClosed
from retinue.pipes.errors import PathError as PathError
from retinue.pipes.errors import PathSevered as PathSevered
from retinue.pipes.errors import ProtocolViolation as ProtocolViolation
from retinue.pipes.errors import Rejected as Rejected
from retinue.pipes.errors import WrongMode as WrongMode
from retinue.pipes.message import Message as Message
from retinue.pipes.message import Reply as Reply
from retinue.pipes.meter import Meter as Meter
from retinue.pipes.options import Rebind as Rebind
from retinue.pipes.overflow import Overflow as Overflow
from retinue.pipes.path import Path as Path
from retinue.pipes.path import open_path as open_path
from retinue.pipes.states import State as State
from retinue.pipes.stream import PathStream as PathStream
from retinue.pipes.traces import new_trace as new_trace
from retinue.pipes.traces import trace as trace
from retinue.pipes.traces import tracing as tracing
from retinue.pipes.transport import MemoryTransport as MemoryTransport
from retinue.pipes.transport import SocketTransport as SocketTransport
from retinue.pipes.transport import Transport as Transport
from retinue.pipes.transport import memory_pair as memory_pair
from retinue.pipes.transport import socket_pair as socket_pair
