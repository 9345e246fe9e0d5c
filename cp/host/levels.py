"""The levels of the seal: which layers each is made of, which one a host reaches, and what would take it further.

A level holds for all machines of a system, but the machine with the host's network has no network namespace, and as
root no user namespace, at any level (see :mod:`retinue.cp.host.seal.namespaces`).
"""

from collections.abc import Collection, Iterable
from typing import Final, Literal

import attrs

from retinue.cp.host.interface import SealLayer

__all__ = ["LEVELS", "Level", "Missing", "layers_of", "level_of", "missing", "reaches", "refusal"]

Level = Literal["full", "strong", "basic"]

NAMESPACES: Final = ("user-ns", "mount-ns", "pid-ns", "net-ns", "ipc-ns", "uts-ns", "cgroup-ns")

LEVELS: Final[dict[Level, tuple[str, ...]]] = {
    "full": ("no-new-privs", "seccomp", "landlock", *NAMESPACES, "own-uid"),
    "strong": ("no-new-privs", "seccomp", "landlock"),
    "basic": ("no-new-privs", "seccomp", "mount-ns", "pid-ns"),
}
"""The strongest first. Less than the last is not called sealed."""

_NAMESPACE_CURE: Final = (
    "allow user namespaces to the user that starts the system: sysctl user.max_user_namespaces=15000; on Debian also "
    "kernel.unprivileged_userns_clone=1; on Ubuntu an AppArmor profile with `userns,` for its Python, or "
    "kernel.apparmor_restrict_unprivileged_userns=0; in a container a seccomp profile that allows unshare, clone, "
    "mount and pivot_root (docker run --security-opt seccomp=FILE --security-opt apparmor=unconfined)"
)

_CURES: Final = {
    "no-new-privs": "needs Linux 3.5",
    "seccomp": "needs a kernel with CONFIG_SECCOMP_FILTER; in a container a seccomp profile that allows seccomp(2)",
    "landlock": "needs Linux 5.13 or later built with CONFIG_SECURITY_LANDLOCK, and landlock in the kernel's lsm= "
    "parameter; in a container a seccomp profile that allows landlock_create_ruleset, landlock_add_rule and "
    "landlock_restrict_self (Docker 23 or later)",
    "mount-ns": "needs Linux 5.12; " + _NAMESPACE_CURE,
    "own-uid": "start the system as root of the host and not of a container, with a Python and packages that everybody "
    "may read; or as an ordinary user, who needs no such layer",
} | {layer: _NAMESPACE_CURE for layer in NAMESPACES if layer != "mount-ns"}


@attrs.frozen
class Missing:
    """A layer that a level asks for and machines do not have."""

    layer: str
    why: str
    cure: str
    """What somebody who administers the host would do."""


def layers_of(level: Level, *, network: bool, root: bool) -> tuple[str, ...]:
    """The layers that machines must have.

    :param network: of the machine with the host's network.
    :param root: the system was started by root.
    """
    without = set() if root else {"own-uid"}
    if network:
        without |= {"net-ns", "user-ns"} if root else {"net-ns"}
    return tuple(layer for layer in LEVELS[level] if layer not in without)


def level_of(layers: Collection[str], *, network: bool, root: bool) -> Level | None:
    """The strongest level whose layers are all among ``layers``; None if there is no such."""
    for level in LEVELS:
        if set(layers_of(level, network=network, root=root)) <= set(layers):
            return level
    return None


def reaches(reached: Level | None, least: Level) -> bool:
    """Whether a level is at least another one."""
    order = list(LEVELS)
    return reached is not None and order.index(reached) <= order.index(least)


def missing(level: Level, report: Iterable[SealLayer], *, system: str, root: bool) -> list[Missing]:
    """What the machines of one saved system lack for a level."""
    found = {layer.layer: layer for layer in report if layer.system == system}
    lacking = []
    for name in layers_of(level, network=system == "network", root=root):
        if name not in found or not found[name].present:
            why = found[name].why if name in found else "it is not reported"
            lacking.append(Missing(name, why, _CURES[name]))
    return lacking


def refusal(least: Level, report: Collection[SealLayer], *, root: bool) -> str:
    """Why a system that accepts ``least`` must not start, for whoever starts it; empty if it may."""
    texts = []
    weakest: Level | None = "full"
    for system in dict.fromkeys(layer.system for layer in report):
        layers = {layer.layer for layer in report if layer.system == system and layer.present}
        level = level_of(layers, network=system == "network", root=root)
        if weakest is not None and (level is None or not reaches(level, weakest)):
            weakest = level
        if reaches(level, least):
            continue
        who = "the machine with the host's network" if system == "network" else "sealed machines"
        lines = [f"the seal of {who} is {level or 'none'}, and {least} is the least that the topology accepts:"]
        for whys, cure, names in _grouped(missing(least, report, system=system, root=root)):
            lines += [f"  {', '.join(names)}: {whys}", f"    cure: {cure}"]
        texts.append("\n".join(lines))
    if not texts:
        return ""
    if weakest is None:
        texts.append("Less than that is not called sealed, and never accepted.")
    else:
        texts.append(f'To accept less, write in the topology:  [system] seal = "{weakest}"')
    return "\n".join(texts)


def _grouped(lacking: Iterable[Missing]) -> list[tuple[str, str, list[str]]]:
    """(why, cure, layers): several layers often lack for one reason."""
    groups: dict[tuple[str, str], list[str]] = {}
    for one in lacking:
        groups.setdefault((one.why, one.cure), []).append(one.layer)
    return [(why, cure, layers) for (why, cure), layers in groups.items()]
