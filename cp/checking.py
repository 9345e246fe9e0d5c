"""Records that others have made, as far as they are what a record may be.

Machines write frames into their log descriptors, and the machine that keeps records answers with some: neither is
believed.
"""

from collections.abc import Sequence
from typing import Any, Final, TypeGuard

from retinue.cp.records import Record
from retinue.pipes import Rejected, wire

# The logger of what the control program itself says, also for a machine; no machine may use the name.
OURS: Final = "retinue.cp"
# Values in the fields of one record, and how deep they may be nested: more costs every reader more than it tells.
MAX_VALUES: Final = 256
MAX_DEPTH: Final = 8
# No record is from after the year 5138: a time beyond it is no time, and would not format as one.
LATEST: Final = 1e11

Body = list[Any]  # of a record: time, severity, logger, message, fields


def is_body(untrusted: object) -> TypeGuard[Body]:
    """Whether it is made of what a body is made of. What may be in its fields, and which time, is another question."""
    if type(untrusted) is not list or len(untrusted) != 5:
        return False
    when, severity, logger, message, fields = untrusted
    return (
        type(when) is float
        and type(severity) is int
        and 0 <= severity <= 7
        and type(logger) is type(message) is str
        and type(fields) is dict
    )


def checked_body(untrusted_frame: wire.Frame) -> Body | None:
    """The body of a record's frame, or None when it is something else."""
    if len(untrusted_frame) != 3 or untrusted_frame[0] != 1 or untrusted_frame[1] < 0:  # a SEND
        return None
    body = untrusted_frame[2]
    if not is_body(body):
        return None
    when, _, logger, _, fields = body
    if not 0.0 <= when < LATEST:
        return None
    if fields and not _modest(fields):
        body[4] = {"cut": f"more than {MAX_VALUES} values, deeper than {MAX_DEPTH}, or keys that are no texts"}
    if logger.startswith(OURS):
        body[2] = f"not {logger}"[:256]
    elif len(logger) > 256:
        body[2] = logger[:256]
    return body


def checked_bodies(untrusted_frames: Sequence[wire.Frame], number: int) -> list[Body] | None:
    """The bodies of frames that are all records as they mostly are, with the numbers after that one; else None.

    Then each is to be looked at by itself (:func:`checked_body`), which costs several times as much.
    """
    bodies: list[Body] = []
    known = ""
    for untrusted in untrusted_frames:
        number += 1
        if len(untrusted) != 3 or untrusted[0] != 1 or untrusted[1] != number:
            return None
        body = untrusted[2]
        if type(body) is not list or len(body) != 5:
            return None
        when, severity, logger, message, fields = body
        if type(when) is not float or type(severity) is not int or not 0 <= severity <= 7 or not 0.0 <= when < LATEST:
            return None
        if type(logger) is not str or type(message) is not str or type(fields) is not dict:
            return None
        if fields and not _modest(fields):
            return None
        if logger != known:
            if logger.startswith(OURS) or len(logger) > 256:
                return None
            known = logger
        bodies.append(body)
    return bodies


def checked_records(untrusted_answer: Any) -> list[Record]:
    """The records in the answer of the machine that keeps them; Rejected ``bad-answer`` when they are none."""
    match untrusted_answer:
        case {"records": list(untrusted)} if all(map(_is_record, untrusted)):
            return untrusted
    raise Rejected("bad-answer", "it did not answer with records")


def checked_names(untrusted_answer: Any) -> list[str]:
    """The names in such an answer; Rejected likewise."""
    if type(untrusted_answer) is list and all(type(name) is str for name in untrusted_answer):
        return untrusted_answer
    raise Rejected("bad-answer", "it did not answer with names")


def checked_found(untrusted_answer: Any) -> tuple[list[Record], tuple[str, int] | None]:
    """The same, with the place from where to go on: ``[run, number]``, or None at the end."""
    records = checked_records(untrusted_answer)
    match untrusted_answer:
        case {"more": None}:
            return records, None
        case {"more": [str(run), int(number)]} if type(number) is int and number >= 0:
            return records, (run, number)
    raise Rejected("bad-answer", "it did not answer with a place in the log")


# What a record is made of, apart from its time.
_SHAPE: Final[dict[str, type]] = {
    "seq": int,
    "machine": str,
    "generation": int,
    "severity": int,
    "logger": str,
    "message": str,
    "fields": dict,
}


def _is_record(untrusted: Any) -> bool:
    return (
        type(untrusted) is dict
        and untrusted.keys() == _SHAPE.keys() | {"time"}
        and all(type(untrusted[name]) is kind for name, kind in _SHAPE.items())
        and type(untrusted["time"]) is float
        and _modest(untrusted["fields"])
    )


def _modest(untrusted_fields: dict[Any, Any]) -> bool:
    """Whether fields are few and flat enough to be carried on and stored as they are."""
    for key, value in untrusted_fields.items():
        if type(key) is not str or type(value) is dict or type(value) is list:
            break
    else:
        return len(untrusted_fields) <= MAX_VALUES
    left = MAX_VALUES
    level: list[Any] = [untrusted_fields]
    for _ in range(MAX_DEPTH):
        below: list[Any] = []
        for each in level:
            left -= len(each)
            if left < 0:
                return False
            if type(each) is dict and not all(type(key) is str for key in each):
                return False
            values = each.values() if type(each) is dict else each
            below += [value for value in values if type(value) in (dict, list)]
        if not below:
            return True
        level = below
    return False
