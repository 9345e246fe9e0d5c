"""``retinue start``, ``stop``, ``restart``, ``replace``, ``set`` and ``upgrade``: orders to a running system."""

import tomllib
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from retinue.cp.cli.command import json_option, selection, state_option, system_option
from retinue.cp.cli.completing import SETTINGS, complete_machines, complete_settings
from retinue.cp.cli.errors import FAILED, OK, CommandError, PathLost, UnknownMachine, did_you_mean
from retinue.cp.cli.output import complain, neutralise, say, tell, to_json
from retinue.cp.cli.systems import find_system

if TYPE_CHECKING:
    from retinue.cp.runtime import Running

_Function = TypeVar("_Function", bound=Callable[..., Any])

# Seconds that the control program after this one may take to answer.
SUCCESSION: Final = 10.0

# What has become of the machine, by verb.
_DONE: Final = {"start": "is started", "stop": "is stopped", "restart": "is restarted", "replace": "is replaced"}


def _names() -> Callable[[_Function], _Function]:
    return click.argument("names", metavar="NAME...", nargs=-1, required=True, shell_complete=complete_machines)


@click.command()
@_names()
@json_option()
@system_option()
@state_option()
@click.pass_context
def start(ctx: click.Context, names: tuple[str, ...], as_json: bool) -> int:
    """Start machines, and wait until they are READY.

    For those that are STOPPED, BROKEN or DORMANT. A machine that is READY stays as it is. Of one that waits for its
    next start the pause ends now.
    """
    return _orders(ctx, "start", names, as_json)


@click.command()
@_names()
@json_option()
@system_option()
@state_option()
@click.pass_context
def stop(ctx: click.Context, names: tuple[str, ...], as_json: bool) -> int:
    """Stop machines in order, and wait until they have ended.

    They stay STOPPED until they are started. Each finishes what it has begun, for as long as its `grace` allows, and is
    killed then. Machines that use it go on: what they ask it is refused.
    """
    return _orders(ctx, "stop", names, as_json)


@click.command()
@_names()
@json_option()
@system_option()
@state_option()
@click.pass_context
def restart(ctx: click.Context, names: tuple[str, ...], as_json: bool) -> int:
    """Stop machines in order and start them again.

    Waits until they are READY. Between the two nobody answers; paths to the machine wait, as after a death, if their
    edge says "keep". To lose not even that moment: retinue replace.
    """
    return _orders(ctx, "restart", names, as_json)


@click.command()
@_names()
@json_option()
@system_option()
@state_option()
@click.pass_context
def replace(ctx: click.Context, names: tuple[str, ...], as_json: bool) -> int:
    """Replace machines by successors, without losing a message.

    A successor runs the present code of the machine. It starts beside the machine; when it is READY the paths go over
    to it, and the machine ends what it has begun. A successor that does not become READY is removed, and the machine
    goes on. A machine with the network or with disks of its own is stopped first (see `replace` in the topology); paths
    wait meanwhile.
    """
    return _orders(ctx, "replace", names, as_json)


def _orders(ctx: click.Context, verb: str, names: tuple[str, ...], as_json: bool) -> int:
    system = find_system(selection(ctx))
    from retinue.cp.cli.session import converse

    results = converse(partial(_carry_out, system, verb, tuple(dict.fromkeys(names)), as_json))
    if as_json:
        say(to_json(results))
    return OK if all(result["ok"] for result in results) else FAILED


async def _carry_out(system: "Running", verb: str, names: tuple[str, ...], as_json: bool) -> list[dict[str, Any]]:
    """One machine after another; code that does not work in the first is not tried with the others."""
    from retinue.cp.cli.orders import order
    from retinue.cp.cli.session import request

    listed = [str(machine["name"]) for machine in (await request(system, "ps"))["machines"]]
    for name in names:  # before the first order is given
        if name not in listed and name not in {each.partition("@")[0] for each in listed}:
            raise UnknownMachine(name, system.system, listed)
    results: list[dict[str, Any]] = []
    for name in names:
        try:
            answer = await order(system, verb, machine=name)
        except PathLost:
            raise
        except CommandError as error:
            if len(names) == 1 and not as_json:
                raise
            complain(f"{name}: {error.problem}", error.cure)
            results.append({"machine": name, "ok": False, "problem": error.problem})
            if verb == "replace":
                break
            continue
        results.append({"machine": name, "ok": True, **(answer if isinstance(answer, dict) else {})})
        if not as_json:
            say(f"{neutralise(name)} {_DONE[verb]}{_facts(answer)}")
    return results


def _facts(answer: Any) -> str:
    """In brackets, of a replacement: from which generation to which, and how."""
    replaced = answer.get("replaced") if isinstance(answer, Mapping) else None
    if not isinstance(replaced, Mapping):
        return ""
    said = []
    for name, about in replaced.items():
        how = "the successor started beside it" if about["overlap"] else "it was stopped first"
        which = f"{neutralise(str(name))}: " if len(replaced) > 1 else ""
        said.append(f"{which}generation {about['from']} -> {about['to']}, {how}")
    return f" ({'; '.join(said)})"


@click.command("set")
@click.argument("name", shell_complete=complete_machines)
@click.argument("settings", metavar="KEY=VALUE...", nargs=-1, required=True, shell_complete=complete_settings)
@json_option()
@system_option()
@state_option()
@click.pass_context
def set_(ctx: click.Context, name: str, settings: tuple[str, ...], as_json: bool) -> int:
    """Change settings of a machine while it runs.

    The machine NAME is not restarted. KEYs: share, cpu, storage, restart, restarts, pause, watchdog, grace, idle,
    essential, log. VALUEs are written as in the topology file, quotes may be left out:

    \b
    retinue set SHOP share=200 storage=256M
    retinue set SHOP watchdog=off 'restarts={ most = 5, within = "60s" }'
    retinue set SHOP log.policy=drop log.rate=100/s

    The topology file stays as it is: what shall last must be written there, too.
    """
    wanted = dict(_setting(ctx, each) for each in settings)
    system = find_system(selection(ctx))
    from retinue.cp.cli.orders import order
    from retinue.cp.cli.session import converse

    answer = converse(partial(order, system, "set", progress=False, machine=name, settings=wanted))
    if as_json:
        say(to_json(answer))
        return OK
    done, failed = _changed(answer)
    for line in done:
        say(line)
    if failed:
        raise CommandError("\n".join(["not everything could be set:", *failed]))
    if not done:
        say(f"{neutralise(name)} has these settings already")
    else:
        tell(f"-- {system.topology or 'the topology file'} is as it was: what shall last must be written there --")
    return OK


def _setting(ctx: click.Context, text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    key, value = key.strip(), value.strip()
    if not equals or not key or not value:
        raise click.UsageError(f"{text!r} is no setting: write KEY=VALUE, as in share=200", ctx)
    if key not in SETTINGS:
        known = ", ".join(SETTINGS)
        raise click.UsageError(f"no setting {key!r} of a machine that runs{did_you_mean(key, SETTINGS)} ({known})", ctx)
    try:
        return key, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key, value  # a string without its quotes


def _changed(answer: Any) -> tuple[list[str], list[str]]:
    """What an answer says was changed, each ``SHOP: share: 100 -> 200``, and what was not, with the reason."""
    changes = answer.get("changed") if isinstance(answer, Mapping) else None
    done, failed = [], []
    for change in changes if isinstance(changes, list) else ():
        name = neutralise(str(change["machine"]))
        if change["failed"]:
            failed.append(f"{name}: {change['failed']}")
        else:
            done += [f"{name}: {neutralise(str(why))}" for why in change["why"]]
    return done, failed


@click.command()
@json_option()
@system_option()
@state_option()
@click.pass_context
def upgrade(ctx: click.Context, as_json: bool) -> int:
    """Restart the control program onto newly installed code.

    Machines, paths and connections go on. A control program that cannot be loaded is refused, and the present one
    stays. Machines keep their code: for that there is retinue replace. The nucleus stays, too: it takes a down and an
    up.
    """
    system = find_system(selection(ctx))
    from retinue.cp.cli.session import converse

    before, after, seconds = converse(partial(_upgrade, system))
    answer = {"from": before, "to": after, "seconds": round(seconds, 3)}
    if as_json:
        say(to_json(answer))
        return OK
    versions = f"version {neutralise(str(before['version']))} -> {neutralise(str(after['version']))}"
    pids = f"pid {before['cp_pid']} -> {after['cp_pid']}"
    say(f"{system.system} has a new control program ({versions}, {pids}, {seconds:.2f} s)")
    return OK


async def _upgrade(system: "Running") -> tuple[dict[str, Any], dict[str, Any], float]:
    import trio

    from retinue.cp.cli.orders import FOREVER
    from retinue.cp.cli.session import ask, operator, request

    began = trio.current_time()
    async with operator(system) as path:
        before = _identity(await ask(path, system, "status"))
        with suppress(PathLost), trio.move_on_after(SUCCESSION):
            await ask(path, system, "upgrade", within=FOREVER)
            await path.wait_severed()  # it leaves when a successor is loaded, and the path ends with it
    after = _identity(await request(system, "status"))
    if after["cp_pid"] == before["cp_pid"]:
        raise CommandError(
            f"the control program of {system.system} (pid {before['cp_pid']}) has not left within {SUCCESSION:.0f} s",
            "what it says: retinue logs CP",
        )
    return before, after, trio.current_time() - began


def _identity(status: Mapping[str, Any]) -> dict[str, Any]:
    return {name: status[name] for name in ("cp_pid", "version", "since")}
