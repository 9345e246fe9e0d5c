"""How the limits of machines are kept on this host, in the words of the report."""

from collections.abc import Sequence

from retinue.cp.host import autogroup
from retinue.cp.host.cgroups import Groups
from retinue.cp.host.controllers import Found
from retinue.cp.host.interface import Limit, SealLayer

__all__ = ["report", "shares"]

_NO_GROUPS = Found("", 0, "", "it was started without control groups")
_QUOTA = "a disk is a folder: the kernel bounds each file of it, and no file system here counts a folder as a whole"


def shares(groups: Groups | None) -> tuple[autogroup.Shares | None, str]:
    """Who gives machines their shares where there is no ``cpu`` controller, and why it is not the first choice."""
    if groups is not None and groups.has("cpu", ""):
        return None, ""
    why = autogroup.available(autogroup.managed_group())
    return autogroup.Shares(sessions=not why), why


def report(
    groups: Groups | None, given: autogroup.Shares | None, why_given: str, layers: Sequence[SealLayer]
) -> list[Limit]:
    """One entry for each kind of limit."""
    lacking = {layer.layer for layer in layers if not layer.present}
    sealed = {layer.layer for layer in layers} - lacking
    return [
        _storage(groups),
        _share(groups, given, why_given),
        _cpu(groups),
        _tasks(groups, limited="tasks" in sealed),
        Limit("disk", "watched once a second", False, _QUOTA, "a file system of its own for the state folder"),
        Limit("temporary disk", "tmpfs", True)
        if "mount-ns" in sealed
        else Limit("temporary disk", "watched once a second", False, "machines have no mounts of their own"),
    ]


def _found(groups: Groups | None, controller: str) -> Found:
    return _NO_GROUPS if groups is None else groups.found[controller]


def _storage(groups: Groups | None) -> Limit:
    found = _found(groups, "memory")
    if not found.version:
        why = f"{found.why}; resource limits bound what one process maps, the whole is watched once a second"
        return Limit("storage", "resource limits, watched once a second", False, why, found.cure)
    mechanism = f"memory cgroup (version {found.version})"
    if groups is None or groups.counts_swap:
        return Limit("storage", mechanism, True)
    if found.version == 1:
        return Limit("storage", mechanism, True, "swap is not counted", "boot with swapaccount=1")
    return Limit("storage", mechanism, True, "real storage and swap have a limit each; the sum is watched")


def _share(groups: Groups | None, given: autogroup.Shares | None, why_given: str) -> Limit:
    found = _found(groups, "cpu")
    if given is None:
        return Limit("share", f"cpu cgroup (version {found.version})", True)
    if given.sessions:
        return Limit("share", "autogroup", True, f"{found.why}; in steps of 1.25, at most 1:68", found.cure)
    why = f"{found.why}; {why_given}; in steps of 1.25, at most 1:68"
    return Limit("share", "nice", True, why, found.cure)


def _cpu(groups: Groups | None) -> Limit:
    found = _found(groups, "cpu")
    if groups is None or not found.version:
        return Limit("cpu", "none", False, found.why, found.cure)
    if groups.has("cpu", "cpu.max") or groups.has("cpu", "cpu.cfs_quota_us"):
        return Limit("cpu", f"cpu cgroup (version {found.version})", True)
    return Limit("cpu", "none", False, "this kernel is built without CFS_BANDWIDTH", "another kernel")


def _tasks(groups: Groups | None, *, limited: bool) -> Limit:
    found = _found(groups, "pids")
    if found.version:
        return Limit("tasks", f"pids cgroup (version {found.version})", True)
    if limited:
        return Limit("tasks", "resource limit in a user namespace", True)
    return Limit("tasks", "none", False, found.why, found.cure)
