"""The edges of a running system, with the meters of both ends side by side, for the verb ``edges``."""

import contextlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import trio

from retinue.cp.circuit import label
from retinue.pipes import Meter, PathError

if TYPE_CHECKING:
    from retinue.cp.life import Life
    from retinue.cp.system import ControlProgram

# Seconds a machine has to tell its meters.
METERS_TIME: Final = 2.0

MeterDict = dict[str, Any]
_NAMES: Final = frozenset(Meter().as_dict())
_BUCKETS: Final = len(Meter().latency)


class Books:
    """The meters of one machine: of the edges it uses, by local name, and of those it serves, by ``WEB.app``."""

    def __init__(self, untrusted: Any) -> None:
        self._uses = _checked(untrusted, "uses")
        self._serves = _checked(untrusted, "serves")

    def of_use(self, edge: str) -> MeterDict | None:
        """Of an edge of its own: nothing has passed if it does not say so; None if what it says is no meter."""
        return self._uses.get(edge, Meter().as_dict())

    def of_service(self, edge: str) -> MeterDict | None:
        """Of an edge that leads to it, likewise."""
        return self._serves.get(edge, Meter().as_dict())


def _checked(untrusted: Any, which: str) -> dict[str, MeterDict | None]:
    if type(untrusted) is not dict or type(untrusted.get(which)) is not dict:
        return {}
    return {name: checked_meter(meter) for name, meter in untrusted[which].items()}


def checked_meter(untrusted: Any) -> MeterDict | None:
    """A meter as a machine tells it, or None if it is none."""
    if type(untrusted) is not dict or untrusted.keys() != _NAMES:
        return None
    latency = untrusted["latency"]
    if type(latency) is not list or len(latency) != _BUCKETS:
        return None
    counts = [*latency, *(untrusted[name] for name in _NAMES - {"latency"})]
    return untrusted if all(type(count) is int and count >= 0 for count in counts) else None


async def survey(cp: "ControlProgram") -> list[dict[str, Any]]:
    """Every edge in the order of the topology, with the meters of both ends; asks all machines at once."""
    books: dict[str, Books] = {}

    async def ask(life: "Life") -> None:
        with trio.move_on_after(METERS_TIME):
            with contextlib.suppress(PathError):  # it has no process now, or one that does not answer
                books[life.name] = Books(await life.meters())

    async with trio.open_nursery() as nursery:
        for life in cp.lives.values():
            nursery.start_soon(ask, life)
    return _rows(cp, books)


def _rows(cp: "ControlProgram", books: Mapping[str, Books]) -> list[dict[str, Any]]:
    open_paths = cp.switchboard.paths_by_edge()
    rows = []
    for life in cp.lives.values():
        for edge in life.entry.uses:
            name = label(life.name, edge)
            ours = books.get(life.name)
            rows.append(
                {
                    "from": life.name,
                    "name": edge.name,
                    "to": edge.to,
                    "on_restart": None if edge.star else edge.on_restart,
                    "overflow": None if edge.star else edge.overflow,
                    "limit": edge.limit,
                    "paths": open_paths[name],
                    "meters": {
                        "from": ours.of_use(edge.name) if ours is not None else None,
                        "to": cp.switchboard.star_meter(name).as_dict() if edge.star else _served(books, edge.to, name),
                    },
                }
            )
    return rows


def _served(books: Mapping[str, Books], to: str, name: str) -> MeterDict | None:
    """What the machine at the other end counts, or all that are behind its name; None if none of them tells."""
    told = [each.of_service(name) for machine, each in books.items() if machine.partition("@")[0] == to]
    meters = [each for each in told if each is not None]
    if len(meters) < 2:
        return meters[0] if meters else None
    total: MeterDict = {each: sum(meter[each] for meter in meters) for each in _NAMES - {"latency", "high_water"}}
    total["high_water"] = max(meter["high_water"] for meter in meters)
    total["latency"] = [sum(counts) for counts in zip(*(meter["latency"] for meter in meters), strict=True)]
    return total
