"""Verbs that change something: machines, settings, the topology, the control program itself."""

import os
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

from retinue.cp.explanation import with_base
from retinue.cp.requests.arguments import known, take
from retinue.cp.secrets import take_over
from retinue.cp.syslog import NOTICE
from retinue.pipes import Rejected, Reply

if TYPE_CHECKING:
    from retinue.cp.operator import OperatorPath

# Bytes of the variables that come with an apply: of those that all secrets of a large system may have.
VARIABLES_MAX: Final = 64 * 1024 * 1024


async def connect(asker: "OperatorPath", arguments: dict[str, Any]) -> Any:
    (machine,) = take(arguments, {"machine": (str, "")})
    known(machine, asker.cp.lives)
    made = await asker.cp.switchboard.connect_operator(machine)
    return Reply(None, (made.descriptor,))


async def down(asker: "OperatorPath", arguments: dict[str, Any]) -> Any:
    (force,) = take(arguments, {"force": (bool, False)})
    asker.cp.stop("down", f"{asker.who} ended it", force=force)


async def detach(asker: "OperatorPath", arguments: dict[str, Any]) -> Any:
    take(arguments, {})
    asker.cp.reception.detach(asker.path)


async def attend(asker: "OperatorPath", arguments: dict[str, Any]) -> Any:
    take(arguments, {})
    asker.cp.reception.attend(asker.path)


async def start(asker: "OperatorPath", arguments: dict[str, Any]) -> Any:
    machine = _machine(asker, arguments)
    return await _order(asker, f"to start {machine}", lambda: asker.cp.administration.start(machine))


async def stop(asker: "OperatorPath", arguments: dict[str, Any]) -> Any:
    machine = _machine(asker, arguments)
    return await _order(asker, f"to stop {machine}", lambda: asker.cp.administration.stop(machine))


async def restart(asker: "OperatorPath", arguments: dict[str, Any]) -> Any:
    machine = _machine(asker, arguments)
    return await _order(asker, f"to restart {machine}", lambda: asker.cp.administration.restart(machine))


async def replace(asker: "OperatorPath", arguments: dict[str, Any]) -> Any:
    machine = _machine(asker, arguments)
    return await _order(asker, f"to replace {machine}", lambda: asker.cp.administration.replace(machine))


async def plan(asker: "OperatorPath", arguments: dict[str, Any]) -> Any:
    path = _path(*take(arguments, {"path": (str, "")}))
    return {"system": asker.cp.name, "changes": [change.as_dict() for change in asker.cp.administration.plan(path)]}


async def apply(asker: "OperatorPath", arguments: dict[str, Any], descriptors: tuple[int, ...]) -> Any:
    """The variables that hold secrets come with it in a memfd (:func:`retinue.cp.secrets.hand_over`)."""
    (untrusted_path,) = take(arguments, {"path": (str, "")})
    path = _path(untrusted_path)
    variables = _variables(descriptors)
    return await _order(asker, f"to apply {path}", lambda: asker.cp.administration.apply(path, variables))


def _variables(descriptors: tuple[int, ...]) -> dict[str, bytes]:
    if not descriptors:
        return {}
    try:
        if len(descriptors) > 1 or not 0 <= os.fstat(descriptors[0]).st_size <= VARIABLES_MAX:
            raise Rejected("bad-arguments", "the variables come in one memfd, and are not that many")
        return take_over(os.dup(descriptors[0]))
    except (OSError, ValueError) as exc:
        raise Rejected("bad-arguments", f"the variables cannot be read: {exc}") from exc


async def set_(asker: "OperatorPath", arguments: dict[str, Any]) -> Any:
    machine, settings = take(arguments, {"machine": (str, ""), "settings": (dict, {})})
    known(machine, with_base(asker.cp.lives))
    if not settings or not all(type(key) is str for key in settings):
        raise Rejected("bad-arguments", "settings must be a map with at least one setting")
    said = ", ".join(map(str, settings))
    return await _order(
        asker, f"to set {said[:200]} of {machine}", lambda: asker.cp.administration.set(machine, settings)
    )


async def upgrade(asker: "OperatorPath", arguments: dict[str, Any]) -> Any:
    take(arguments, {})
    return await _order(asker, "an upgrade of the control program", asker.cp.administration.upgrade)


def _machine(asker: "OperatorPath", arguments: dict[str, Any]) -> str:
    (machine,) = take(arguments, {"machine": (str, "")})
    known(machine, with_base(asker.cp.lives))
    return str(machine)


def _path(path: str) -> str:
    if not path.startswith("/"):
        raise Rejected("bad-arguments", "path must be absolute")
    return path


async def _order(asker: "OperatorPath", what: str, order: Callable[[], Awaitable[Any]]) -> Any:
    """What has been begun is finished, whether or not whoever ordered it is still there to hear of it."""
    asker.cp.syslog.write(NOTICE, f"{asker.who} orders {what}")
    return await asker.cp.reception.carry_out(order)
