"""Which controllers of control groups a host gives to a process, in which version, and why not (cgroups(7))."""

import os
import re
from collections.abc import Iterable
from typing import Final, NamedTuple

from retinue.cp.host.kernel_files import read

__all__ = ["CONTROLLERS", "DELEGATE", "Found", "find"]

CONTROLLERS: Final = ("memory", "cpu", "pids")

DELEGATE: Final = "start it with: systemd-run --user --scope -p Delegate=yes retinue up ..."
"""The cure where systemd keeps the groups: a scope that is the user's to divide."""


class Found(NamedTuple):
    """One controller on this host."""

    controller: str
    version: int
    """1 or 2; 0 where machines cannot have groups of it."""
    folder: str
    """The group of the control program, if its version is not 0."""
    why: str = ""
    cure: str = ""


def find(
    own: str | None = None, mounts: str | None = None, controllers: Iterable[str] = CONTROLLERS
) -> dict[str, Found]:
    """Which controllers groups can be made for, and why not.

    :param own: the text of /proc/self/cgroup, and
    :param mounts: that of /proc/self/mountinfo; read when they are not given.
    """
    own = read("/proc/self/cgroup") if own is None else own
    mounts = read("/proc/self/mountinfo") if mounts is None else mounts
    first, second = _folders(own, mounts)
    return {name: _look(name, first.get(name), second) for name in controllers}


def _folders(own: str, mounts: str) -> tuple[dict[str, str], str]:
    """The folder of this process's group for each controller of version 1, and the one of version 2, if there is."""
    paths: dict[str, str] = {}
    for line in own.splitlines():
        _, names, path = line.split(":", 2)
        paths |= dict.fromkeys(names.split(","), path)
    first: dict[str, str] = {}
    second = ""
    for line in mounts.splitlines():
        left, _, right = line.partition(" - ")
        (root, place), (kind, _, options) = left.split()[3:5], right.split(maxsplit=2)
        root, place = _unescaped(root), _unescaped(place)
        if kind == "cgroup2":
            second = second or _inside(place, root, paths.get(""))
        elif kind == "cgroup":
            for name in options.split(","):
                if name in paths and (folder := _inside(place, root, paths[name])):
                    first.setdefault(name, folder)
    return first, second


def _inside(place: str, root: str, path: str | None) -> str:
    """The folder of a group, in a mount that shows the groups below ``root``; empty if it does not show this one."""
    if path is None or not (path + "/").startswith(root.rstrip("/") + "/"):
        return ""
    folder = place + "/" + path[len(root.rstrip("/")) :].strip("/")
    return folder.rstrip("/") if os.path.isdir(folder) else ""


def _unescaped(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text)


def _look(name: str, first: str | None, second: str) -> Found:
    if first:
        if os.access(first, os.W_OK | os.X_OK, effective_ids=True):
            return Found(name, 1, first)
        cure = f"run it as root, or in a group that root made and gave to user {os.geteuid()} (chown)"
        return Found(name, 0, "", f"the group {first} is not ours to divide", cure)
    if second and name in read(f"{second}/cgroup.controllers").split():
        if os.access(second, os.W_OK | os.X_OK, effective_ids=True):
            return Found(name, 2, second)
        return Found(name, 0, "", f"the group {second} is not delegated to user {os.geteuid()}", DELEGATE)
    if second and name in read(f"{_top(second)}/cgroup.controllers").split():
        cure = f"systemctl edit user@.service, with [Service] Delegate=cpu memory pids; log in again; {DELEGATE}"
        return Found(name, 0, "", f"the {name} controller is not delegated to the group {second}", cure)
    cure = "boot with cgroup_enable=memory" if name == "memory" else "another kernel, or another container"
    return Found(name, 0, "", f"there is no {name} controller here", cure)


def _top(folder: str) -> str:
    """The uppermost group of version 2 that can be seen from here."""
    while os.path.exists(os.path.join(os.path.dirname(folder), "cgroup.controllers")):
        folder = os.path.dirname(folder)
    return folder
