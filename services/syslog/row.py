"""One stored record."""

import json
from collections.abc import Sequence
from typing import Any, Final

import attrs

from retinue.services.syslog.schema import RUN_BITS


@attrs.frozen
class Row:
    """A record as it was stored. ``id`` grows from record to record; ``seq`` is its number in its ``run``."""

    id: int
    run: str
    seq: int
    time: float
    machine: str
    generation: int
    severity: int
    logger: str
    message: str
    fields: dict[str, Any]

    def as_record(self) -> dict[str, Any]:
        """The record as the control program has it."""
        found = attrs.asdict(self, recurse=False)
        del found["id"], found["run"]
        return found


# What a query asks for so that :func:`row_of` understands its rows. The table is ``entries``.
SELECT: Final = f"""
SELECT id, (SELECT name FROM runs WHERE number = id >> {RUN_BITS}), id & {(1 << RUN_BITS) - 1}, time,
    (SELECT name FROM machines WHERE number = entries.machine), generation, severity,
    CASE typeof(logger) WHEN 'integer' THEN (SELECT name FROM loggers WHERE number = logger) ELSE logger END,
    message, fields FROM entries"""


def row_of(found: Sequence[Any]) -> Row:
    """The row of what a query has found."""
    values = [*found]
    values[-1] = json.loads(values[-1]) if values[-1] else {}
    return Row(*values)


def to_json(fields: dict[str, Any]) -> str:
    """Fields as text that is JSON, also for others: what JSON cannot say becomes a text."""
    try:
        return _strict(fields)
    except ValueError:  # a number that is none, or an infinite one
        return _strict(_finite(fields))


_strict: Final = json.JSONEncoder(
    default=repr, separators=(",", ":"), allow_nan=False, check_circular=False, ensure_ascii=False
).encode


def _finite(value: Any) -> Any:
    if type(value) is dict:
        return {key: _finite(each) for key, each in value.items()}
    if type(value) is list:
        return [_finite(each) for each in value]
    return repr(value) if type(value) is float and value - value != 0.0 else value
