"""Verbs that read and follow: records, changes of state, and the messages of an edge."""

import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import trio

from retinue.cp.broadcast import Follower
from retinue.cp.checking import OURS
from retinue.cp.circuit import label
from retinue.cp.finding import find, logged
from retinue.cp.records import Machines, Record, names_of
from retinue.cp.requests.arguments import known, take
from retinue.cp.selection import MOST_RECORDS, WHERE, WHICH, Selection, selection
from retinue.cp.syslog import CRITICAL
from retinue.cp.tap import RECORDED, SHOWN, Lost, Tap, TapFailed
from retinue.pipes import PathError, Rejected

if TYPE_CHECKING:
    from retinue.cp.operator import OperatorPath
    from retinue.cp.system import ControlProgram

# Followers on one path: each holds its own place in the stream.
MOST_FOLLOWERS: Final = 8
# Items of a follower that are sent before others get their turn.
AT_ONCE: Final = 16
# Taps on one path.
MOST_TAPS: Final = 4

# What a follower is sent of an item of the stream: a message, or None if nothing.
Wanted = Callable[[Any], Any]


async def logs(asker: "OperatorPath", arguments: dict[str, Any]) -> Any:
    """One page of the records that a query wants (:mod:`retinue.cp.selection`)."""
    syslog = asker.cp.syslog
    return (await find(syslog, await _selection(asker.cp, arguments, (*WHICH, *WHERE)))).as_answer()


async def _selection(cp: "ControlProgram", arguments: dict[str, Any], keys: tuple[str, ...]) -> Selection:
    """A query; its machines are of the system, or have been and left records. Rejected if it is none."""
    names = ["CP", *cp.lives]
    try:
        return selection(arguments, cp.syslog.run, names, keys)
    except Rejected as exc:
        if exc.code != "unknown-machine":
            raise
    return selection(arguments, cp.syslog.run, [*names, *await logged(cp.syslog)], keys)


async def follow(asker: "OperatorPath", arguments: dict[str, Any]) -> Any:
    """What comes from now on, and before it what came after a record, as far as it is in memory."""
    which = {name: value for name, value in arguments.items() if name not in ("events", "records", "after")}
    asked = await _selection(asker.cp, which, (*WHICH, "events", "records", "after"))
    rest = {name: value for name, value in arguments.items() if name not in which}
    events, records, after = take(rest, {"events": (bool, False), "records": (bool, True), "after": (int, None)})
    machines = asked.machines

    def wanted(item: Any) -> Any:
        kind, content = item
        if kind == "record":
            return item if records and asked.takes(content) else None
        return item if events and (machines is None or content["machine"] in (None, *machines)) else None

    return await _begin(asker, machines, wanted, after if records else None)


async def events(asker: "OperatorPath", arguments: dict[str, Any]) -> Any:
    """Changes of state, as the records of the control program tell them: each has a place in the log."""
    machine, count, after, on = take(
        arguments, {"machine": (str, None), "count": (int, 100), "after": (int, None), "follow": (bool, False)}
    )
    _known(asker.cp, machine)

    def wanted(item: Any) -> Any:
        event = event_of(item[1]) if item[0] == "record" else None
        return None if event is None or machine not in (None, event["machine"]) else ["event", event]

    if on:
        return await _begin(asker, "CP", wanted, after)
    syslog = asker.cp.syslog
    records = (await find(syslog, Selection(syslog.run, frozenset({"CP"}), count=MOST_RECORDS))).records
    found = [event for event in map(event_of, records) if event is not None and machine in (None, event["machine"])]
    if after is not None:
        found = [event for event in found if event["seq"] > after]
    return {"events": found[-max(0, min(count, MOST_RECORDS)) :] if count > 0 else []}


def event_of(record: Record) -> dict[str, Any] | None:
    """The change of state that a record of the control program tells, or None if it tells something else."""
    fields = record["fields"]
    if record["machine"] != "CP" or record["logger"] != OURS or not {"event", "of"} <= fields.keys():
        return None
    return {
        "seq": record["seq"],
        "time": record["time"],
        "machine": fields["of"],
        "generation": fields.get("generation"),
        "state": fields["event"],
        "previous": fields.get("previous"),
        "cause": fields.get("cause") or record["message"].partition(f" is {fields['event']}: ")[2] or None,
    }


async def _begin(asker: "OperatorPath", machines: Machines, wanted: Wanted, after: int | None) -> Any:
    if asker.followers >= MOST_FOLLOWERS:
        raise Rejected("exhausted", f"one path may follow {MOST_FOLLOWERS} times at once: open another path")
    return {"seq": await asker.nursery.start(_follow_on, asker, machines, wanted, after)}


async def _follow_on(
    asker: "OperatorPath",
    machines: Machines,
    wanted: Wanted,
    after: int | None,
    *,
    task_status: trio.TaskStatus[int],
) -> None:
    syslog = asker.cp.syslog
    asker.followers += 1
    try:
        with syslog.broadcast.follow(wanted, None if machines is None else names_of(machines)) as follower:
            last = syslog.last
            task_status.started(last)
            if after is not None:
                await _catch_up(asker, machines, wanted, after, last)
            # What came leaves at once, in this turn of the loop: each turn more may be as long as that of a flood.
            while items := await follower.take(AT_ONCE):
                for item in items:
                    try:
                        asker.path.send_nowait(item)
                    except trio.WouldBlock:
                        await asker.path.send(item)  # that many are on their way: until they were received
                asker.path.flush()
                await _tell_lost(asker, follower)
            # Only whoever sees this knows that nothing is missing at the end.
            await asker.path.send(["end", {}])
    except* PathError:
        pass  # the end of the path ends the follower as well
    finally:
        asker.followers -= 1


async def _catch_up(asker: "OperatorPath", machines: Machines, wanted: Wanted, after: int, last: int) -> None:
    """Send what came after one record up to another, and say how many of all are not in memory any more."""
    place = after
    while page := asker.cp.syslog.since(place, machines):
        for record in page:
            if record["seq"] > last:
                return
            if machines is None and (lost := record["seq"] - place - 1):
                await asker.path.send(["lost", {"count": lost}])
            place = record["seq"]
            if (item := wanted(["record", record])) is not None:
                await asker.path.send(item)
        await trio.lowlevel.checkpoint()


async def _tell_lost(asker: "OperatorPath", follower: Follower) -> None:
    if lost := follower.take_lost():
        await asker.path.send(["lost", {"count": lost}])


async def tap(asker: "OperatorPath", arguments: dict[str, Any]) -> Any:
    edge, record = take(arguments, {"edge": (str, ""), "record": (bool, False)})
    _check_tappable(asker.cp, edge)
    if asker.taps >= MOST_TAPS:
        raise Rejected("exhausted", f"one path may tap {MOST_TAPS} edges at once: open another path")
    return {"paths": await asker.nursery.start(_tap_on, asker, edge, record)}


async def _tap_on(asker: "OperatorPath", edge: str, record: bool, *, task_status: trio.TaskStatus[int]) -> None:
    cp, path = asker.cp, asker.path
    looker = Tap(cp.topology.system.secret, secrets=cp.secrets, largest=RECORDED if record else SHOWN)
    paths = cp.switchboard.paths_by_edge()[edge]
    asker.taps += 1
    try:
        async with cp.switchboard.tap(edge, looker):
            task_status.started(paths)
            while True:
                read = await looker.read()
                if isinstance(read, Lost):
                    await path.send(["lost", {"count": read.count}])
                else:
                    await path.send(["messages", {"items": read}])
    except PathError:
        pass  # the end of the path ends the tap as well
    except TapFailed as exc:
        trace = "".join(traceback.format_exception(exc))
        cp.syslog.write(CRITICAL, f"the tap of {asker.who} on {edge} failed:\n{trace}")
    finally:
        asker.taps -= 1


def _check_tappable(cp: "ControlProgram", name: str) -> None:
    edges = {label(life.name, edge): edge for life in cp.lives.values() for edge in life.entry.uses}
    if name not in edges:
        tappable = [each for each, edge in edges.items() if not edge.star]
        raise Rejected("unknown-edge", f"there is no edge {name[:64]!r}", tappable)
    if edges[name].star:
        text = f"{name} leads to {edges[name].to}, a service of the control program, and cannot be tapped"
        raise Rejected("unknown-edge", text)


def _known(cp: "ControlProgram", machine: str | None) -> None:
    known(machine, ["CP", *cp.lives])
