"""``retinue doctor``: what this host gives to the seal and the limits of machines, and what would give more."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from typing import Any, Final

import click

from retinue.cp.cli.command import json_option
from retinue.cp.cli.errors import OK, CommandError
from retinue.cp.cli.output import BOLD, DIM, RED, YELLOW, Paint, colour_wanted, neutralise, say, to_json

# Exit codes of a host that seals less than it might; 0 is the whole.
LEVEL_CODES: Final = {"full": OK, "strong": 10, "basic": 11, None: 12}
# Seconds the examination may take on a busy host; half a second is what it takes.
LIMIT: Final = 60.0

# What each layer is for: what a machine could do without it that the others do not refuse.
_GIVES: Final = {
    "no-new-privs": "no program gains rights by being run",
    "seccomp": "no system call but those a service needs",
    "landlock": "no file but its own, even of the same user",
    "user-ns": "no right in the host's namespaces, whatever the kernel forgets to check",
    "mount-ns": "the host's files are not there: not even their names can be asked for",
    "pid-ns": "other processes are not there",
    "net-ns": "no network device, not even the loopback",
    "ipc-ns": "no shared memory or queue of others",
    "uts-ns": "a host name of its own",
    "cgroup-ns": "the host's control groups are not there",
    "own-uid": "each machine is another user of the host, as root",
    "tasks": "a bound on the tasks of each machine",
    "no-proc": "no look at the processes of the host, where there is no mount-ns",
}


@click.command()
@json_option()
def doctor(as_json: bool) -> int:
    """Show what this host gives to the seal of machines.

    And what would give more. Starts scratch machines and lets them try what they must not be able to do. The exit code
    tells the level that is reached: 0 full, 10 strong, 11 basic, 12 less than any system accepts.
    """
    findings = examine()
    if as_json:
        say(to_json(findings))
    else:
        for line in lines(findings, Paint(colour_wanted(sys.stdout))):
            say(line)
    return LEVEL_CODES[findings["level"]]


def examine(boot_entry: str | None = None) -> dict[str, Any]:
    """What the host gives, as ``retinue doctor --json`` prints it. ``boot_entry``: another boot of machines.

    :raises CommandError: it could not be looked at.
    """
    from retinue.cp.cli.session import converse
    from retinue.cp.doctor import ENTRY
    from retinue.cp.host.launch import launch
    from retinue.cp.host.levels import level_of
    from retinue.cp.host.saved import BOOT_ENTRY
    from retinue.pipes import socket_pair

    with tempfile.TemporaryDirectory(prefix="retinue-doctor-") as folder:
        state, runtime = os.path.join(folder, "state"), os.path.join(folder, "run")
        os.mkdir(state)
        os.mkdir(runtime)
        ours, theirs = socket_pair()
        with ours, theirs, tempfile.TemporaryFile() as words:
            process = launch(
                system="DOCTOR",
                network=True,
                topology=folder,
                runtime=runtime,
                state=state,
                console=theirs,
                stderr_file=words,
                cp_entry=ENTRY,
                boot_entry=boot_entry or BOOT_ENTRY,
            )
            theirs.close()
            try:
                findings = converse(partial(_ask, ours))
            finally:
                ours.close()
                _wait(process)
            words.seek(0)
            said = words.read().decode(errors="replace").strip()
    if findings is None or "trouble" in findings:
        trouble = (findings or {}).get("trouble") or said.rpartition("\n")[2] or "it did not answer"
        findings = {"root": os.geteuid() == 0, "seal": [], "limits": [], "paging": None, "self_test": None}
        findings |= {"trouble": trouble}
    by_system: dict[str, set[str]] = {"sealed": set(), "network": set()}
    for layer in findings["seal"]:
        if layer["present"]:
            by_system[layer["system"]].add(layer["layer"])
    levels = {
        system: level_of(layers, network=system == "network", root=findings["root"])
        for system, layers in by_system.items()
    }
    test = findings["self_test"]
    holds = test is not None and all(each["passed"] or each["unavailable"] for each in test["profiles"])
    level = min(levels.values(), key=lambda each: -LEVEL_CODES[each]) if holds else None
    kernel = os.uname()
    return {"level": level, "levels": levels, **findings, "kernel": f"{kernel.sysname} {kernel.release}"}


async def _ask(ours: Any) -> dict[str, Any] | None:
    import trio

    from retinue.pipes import PathError, SocketTransport, open_path

    with trio.move_on_after(LIMIT), suppress(PathError):
        async with open_path(SocketTransport(ours), name="doctor") as path:
            answer = await path.call(["examine", {}])
            if isinstance(answer, dict):
                return answer
    return None


def _wait(process: "subprocess.Popen[bytes]") -> None:
    try:
        process.wait(LIMIT)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise CommandError("the examination did not end and was ended by force") from None


def lines(findings: Mapping[str, Any], paint: Paint) -> list[str]:
    """The findings for people."""
    level = findings["level"]
    shown = paint(level, BOLD) if level == "full" else paint(level or "none", BOLD, YELLOW if level else RED)
    user = "root" if findings["root"] else "an ordinary user"
    found = [f"seal       {shown}   (as {user}, {findings['kernel']})"]
    if "trouble" in findings:
        return [*found, paint(f"trouble    {neutralise(findings['trouble'])}", RED)]
    test = findings["self_test"]
    for profile in test["profiles"]:
        text = f"{profile['attempts']} attempts, all refused"
        if not profile["passed"]:
            text = neutralise(profile["trouble"] or "could " + ", ".join(profile["succeeded"]))
            text = paint(text, YELLOW if profile["unavailable"] else RED)
        found.append(f"self-test  {profile['profile']}: {text}")
    found.append("")
    present: dict[str, dict[str, dict[str, Any]]] = {}
    for layer in findings["seal"]:
        present.setdefault(layer["layer"], {})[layer["system"]] = layer
    names = max(map(len, present), default=0)
    found.append(paint(f"{'LAYER'.ljust(names)}  SEALED  NETWORK  WHAT IT GIVES", BOLD))
    for name, systems in present.items():
        marks = [_mark(systems.get(system), paint, width) for system, width in (("sealed", 6), ("network", 7))]
        found.append(f"{name.ljust(names)}  {'  '.join(marks)}  {_GIVES.get(name, '')}")
        for system, layer in systems.items():
            if not layer["present"]:
                for text in (layer["why"] and f"{system}: {layer['why']}", layer["cure"] and f"cure: {layer['cure']}"):
                    if text:
                        found.append(paint(f"{' ' * names}  {neutralise(text)}", DIM))
    found += ["", *_limits(findings["limits"], paint), "", *_paging(findings["paging"], paint)]
    return found


def _paging(paging: Mapping[str, str], paint: Paint) -> list[str]:
    """By what means machines are paged out, and what is in the way of better ones."""
    found = [f"{paint('PAGING', BOLD)}  {paging['mechanism']}"]
    for text in (paging["why"], paging["cure"] and f"cure: {paging['cure']}"):
        if text:
            found.append(paint(f"        {neutralise(text)}", DIM))
    return found


def _limits(limits: list[dict[str, Any]], paint: Paint) -> list[str]:
    words = max((len(limit["limit"]) for limit in limits), default=0)
    room = max((len(limit["mechanism"]) for limit in limits), default=0)
    found = [paint(f"{'LIMIT'.ljust(words)}  {'KEPT BY'.ljust(room)}  HOW", BOLD)]
    for limit in limits:
        how = "enforced" if limit["enforced"] else paint("advisory", YELLOW)
        found.append(f"{limit['limit'].ljust(words)}  {limit['mechanism'].ljust(room)}  {how}")
        for text in (limit["why"], limit["cure"] and f"cure: {limit['cure']}"):
            if text:
                found.append(paint(f"{' ' * words}  {neutralise(text)}", DIM))
    return found


def _mark(layer: Mapping[str, Any] | None, paint: Paint, width: int) -> str:
    if layer is None:
        return "-".ljust(width)
    return "yes".ljust(width) if layer["present"] else paint("no".ljust(width), YELLOW)
