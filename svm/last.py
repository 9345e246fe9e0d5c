"""The last messages along an edge: what this machine has asked and nobody has answered yet."""

from typing import Any, Final

from retinue.pipes import ProtocolViolation, wire
from retinue.pipes.sender import Unanswered
from retinue.svm.edge import Edge

# Messages told of each edge.
MOST: Final = 5
# Characters told of each message.
HEAD: Final = 200


def last_messages(edge: Edge) -> list[list[Any]]:
    """The newest ones: ``[id, "call" or "send", bytes, age in seconds or None, head of the body]``."""
    found = [each for path in edge.paths for each in path.unanswered(MOST)]
    found.sort(key=lambda each: float("inf") if each.age is None else each.age)
    return [[each.id, each.kind.name.lower(), each.size, each.age, _head(each)] for each in found[:MOST]]


def _head(message: Unanswered) -> str:
    if not message.frame:
        return ""
    try:
        (frame,) = wire.Decoder().decode(message.frame)
    except (ProtocolViolation, ValueError):
        return ""
    return repr(frame[2])[:HEAD]
