"""Verbs that look: the system, its machines and edges, deaths, and who may reach whom."""

import time
from typing import TYPE_CHECKING, Any, Final

from retinue.cp.edges import survey
from retinue.cp.explanation import MachineState, explain, with_base
from retinue.cp.pager.report import figures_of, report
from retinue.cp.rates import processor_seconds
from retinue.cp.requests.arguments import known, take
from retinue.pipes import Rejected

if TYPE_CHECKING:
    from retinue.cp.operator import OperatorPath
    from retinue.cp.system import ControlProgram

# Records of one machine that are counted for a sample: what its ring holds.
COUNTED: Final = 2_000
# Certificates in one answer.
MOST_CERTIFICATES: Final = 10


async def status(asker: "OperatorPath", arguments: dict[str, Any]) -> Any:
    take(arguments, {})
    return asker.cp.status()


async def ps(asker: "OperatorPath", arguments: dict[str, Any]) -> Any:
    take(arguments, {})
    return _listing(asker.cp)


def _listing(cp: "ControlProgram") -> dict[str, Any]:
    return {"system": cp.name, "state": cp.state, "machines": cp.listing()}


async def edges(asker: "OperatorPath", arguments: dict[str, Any]) -> Any:
    take(arguments, {})
    return {"system": asker.cp.name, "edges": await survey(asker.cp)}


async def top(asker: "OperatorPath", arguments: dict[str, Any]) -> Any:
    """One sample: counters that two samples make rates of (:mod:`retinue.cp.rates`)."""
    (after,) = take(arguments, {"after": (int, None)})
    cp = asker.cp
    found = _listing(cp)
    await cp.pager.look()
    for machine in found["machines"]:
        figures = figures_of(cp, machine["name"])
        machine["storage"] |= {name: value for name, value in figures.items() if value is not None}
        machine["cpu_s"] = processor_seconds(machine["pid"])
        records = None if after is None else len(cp.syslog.recent(machine["name"], COUNTED, after=after))
        machine["records"] = records
    return {**found, "time": time.monotonic(), "seq": cp.syslog.last, "edges": await survey(cp)}


async def storage(asker: "OperatorPath", arguments: dict[str, Any]) -> Any:
    take(arguments, {})
    return await report(asker.cp)


async def why(asker: "OperatorPath", arguments: dict[str, Any]) -> Any:
    machine, count = take(arguments, {"machine": (str, ""), "count": (int, 1)})
    cp = asker.cp
    certificates = cp.certificates.all(machine) if machine else []
    if not certificates:
        known(machine, with_base(cp.lives))
    listed = [each.as_dict() for each in certificates[: max(1, min(count, MOST_CERTIFICATES))]]
    states = [each for each in cp.listing() if machine in (each["name"], each["name"].partition("@")[0])]
    return {"system": cp.name, "machine": machine, "certificates": listed, "machines": states}


async def explanation(asker: "OperatorPath", arguments: dict[str, Any]) -> Any:
    origin, target = take(arguments, {"from": (str, ""), "to": (str, "")})
    cp = asker.cp
    states = {life.name: MachineState(life.state.value, life.cause) for life in cp.lives.values()}
    try:
        return {"system": cp.name, **explain(cp.topology, origin, target, states).as_dict()}
    except KeyError as exc:
        raise Rejected("unknown-machine", f"there is no machine {exc.args[0][:64]!r}", exc.args[1]) from None
