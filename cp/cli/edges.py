"""``retinue ps --edges``: what passed along the edges, as a table."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from retinue.cp.cli.output import BOLD, RED, Paint, neutralise, size, table

_HEAD: Final = (
    *("FROM", "EDGE", "TO", "PATHS", "MESSAGES", "BACK", "BYTES", "BACK", "OUT", "HIGH", "LIMIT", "DROPS"),
    *("P50", "P99", "ON RESTART", "OVERFLOW"),
)
_RIGHT: Final = frozenset(range(3, 14))
_DROPS: Final = _HEAD.index("DROPS")


def edge_lines(listing: Mapping[str, Any], *, paint: Paint, room: int | None = None) -> list[str]:
    """An `edges` reply as a table of at most `room` columns."""
    rows = [_row(edge) for edge in listing.get("edges", ())]
    first, *rest = table(_HEAD, rows, right=_RIGHT, room=room)
    lines = [paint("  ".join(first).rstrip(), BOLD)]
    for cells in rest:
        for column in (0, 2):
            cells[column] = paint.machine(cells[column].strip(), cells[column])
        if cells[_DROPS].strip() not in ("0", "-"):
            cells[_DROPS] = paint(cells[_DROPS], RED)
        lines.append("  ".join(cells).rstrip())
    return lines


def _row(edge: Mapping[str, Any]) -> list[str]:
    meters = edge.get("meters") or {}
    ours, theirs = meters.get("from") or {}, meters.get("to") or {}
    latency = ours.get("latency") or ()
    return [
        neutralise(str(edge.get("from", "?"))),
        neutralise(str(edge.get("name", "?"))),
        neutralise(str(edge.get("to", "?"))),
        str(edge.get("paths", "-")),
        # Of an end that does not tell, the other end's figures stand.
        _number(ours.get("sent", theirs.get("received"))),
        _number(ours.get("received", theirs.get("sent"))),
        _bytes(ours.get("bytes_sent", theirs.get("bytes_received"))),
        _bytes(ours.get("bytes_received", theirs.get("bytes_sent"))),
        _number(ours.get("outstanding")),
        _number(ours.get("high_water")),
        str(edge.get("limit", "-")),
        _number(ours.get("dropped")),
        _bound(latency, 0.5),
        _bound(latency, 0.99),
        str(edge.get("on_restart") or "-"),
        str(edge.get("overflow") or "-"),
    ]


def _number(value: Any) -> str:
    return str(value) if isinstance(value, int) else "-"


def _bytes(value: Any) -> str:
    return size(value) if isinstance(value, int) else "-"


def percentile_bound(latency: Sequence[int], share: float) -> int | None:
    """Microseconds within which at least that share of the calls was answered; None if there was none.

    Bucket i of `latency` counts the calls that took less than 2**i microseconds, and not less than half of that.
    """
    calls = sum(latency)
    seen = 0
    for bucket, count in enumerate(latency):
        seen += count
        if seen and seen >= share * calls:
            return int(2**bucket)
    return None


def _bound(latency: Sequence[int], share: float) -> str:
    bound = percentile_bound(latency, share)
    if bound is None:
        return "-"
    if bound == 2 ** (len(latency) - 1):
        return f">{_time(bound // 2)}"  # the last bucket has no upper bound
    return f"<={_time(bound)}"


def _time(microseconds: int) -> str:
    if microseconds < 1000:
        return f"{microseconds}us"
    if microseconds < 1_000_000:
        return f"{microseconds / 1000:.3g}ms"
    return f"{microseconds / 1_000_000:.3g}s" if microseconds < 1_000_000_000 else f"{microseconds // 1_000_000}s"
