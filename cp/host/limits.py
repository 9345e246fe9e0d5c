"""How the limits of machines are kept on this host, in the words of the report; and their change while they run."""

import os
import resource
from collections.abc import Sequence
from typing import NamedTuple

from retinue.cp.host import autogroup
from retinue.cp.host.cgroups import Group, Groups
from retinue.cp.host.controllers import Found
from retinue.cp.host.interface import Limit, SealLayer
from retinue.cp.host.kernel_files import read, write

__all__ = ["Change", "change", "report", "shares"]

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


class Change(NamedTuple):
    """Other limits for a machine that lives; None: as it is."""

    storage: int | None = None
    share: int | None = None
    cpu: float | None = None
    largest_share: int = 0


def change(pid: int, group: Group | None, given: autogroup.Shares | None, wanted: Change) -> str:
    """Change the limits of a machine. Returns why that cannot be, or an empty string."""
    storage = wanted.storage
    resources = _Resources(pid, group)
    if storage is not None and storage < (private := _private(pid)):
        return f"it has {private} bytes of private memory already"
    # What may refuse comes first: the group when there is to be less, the resource limits when there is to be more.
    if storage is not None and storage > resources.storage and (why := resources.change(storage)):
        return why
    if group is not None and (why := group.change(storage=storage, share=wanted.share, cpu=wanted.cpu)):
        return why
    if storage is not None and storage < resources.storage and (why := resources.change(storage)):
        return why
    if wanted.share is None or given is None:
        return ""
    return _change_share(pid, given, wanted.share, wanted.largest_share or wanted.share)


class _Resources:
    """The resource limits of the processes of a machine (:mod:`retinue.cp.host.seal.hygiene`)."""

    def __init__(self, pid: int, group: Group | None) -> None:
        self._pid = pid
        self._group = group
        self.storage = self._now(pid, resource.RLIMIT_DATA)

    def _now(self, pid: int, kind: int) -> int:
        try:
            return resource.prlimit(pid, kind)[0]
        except OSError:  # it has ended, or is somebody else's
            return 0

    def change(self, storage: int) -> str:
        """Storage in bytes. Returns why not."""
        # A group bounds what the machine may give itself back; else the hard limit has to.
        bounded = self._group is not None and self._group.bounds("memory")
        for pid in (self._group.pids() if self._group is not None else set()) | {self._pid}:
            data = self._now(pid, resource.RLIMIT_DATA)
            wanted = {resource.RLIMIT_DATA: storage}
            if self._now(pid, resource.RLIMIT_FSIZE) == data:
                wanted[resource.RLIMIT_FSIZE] = storage
            try:
                for kind, value in wanted.items():
                    hard = resource.prlimit(pid, kind)[1]
                    resource.prlimit(pid, kind, (value, hard if bounded and value < hard else value))
                _change_addresses(pid, storage - data, bounded=bounded)
            except ProcessLookupError:
                continue
            except (OSError, ValueError) as error:
                reason = error.strerror if isinstance(error, OSError) else str(error)
                more = "; only CAP_SYS_RESOURCE raises them above what they were at its start"
                return f"the resource limits of its process: {reason}" + (more if storage > data else "")
        return ""


def _change_addresses(pid: int, more: int, *, bounded: bool) -> None:
    """Bytes of addresses: the hard limit stays above the soft one by what the machine may still have for segments."""
    soft, hard = resource.prlimit(pid, resource.RLIMIT_AS)
    try:
        resource.prlimit(pid, resource.RLIMIT_AS, (soft + more, hard if bounded and more < 0 else hard + more))
    except PermissionError:
        if not bounded or soft + more > hard:
            raise
        resource.prlimit(pid, resource.RLIMIT_AS, (soft + more, hard))


def _private(pid: int) -> int:
    """Bytes of private writable memory of a process, as RLIMIT_DATA counts it."""
    for line in read(f"/proc/{pid}/status").splitlines():
        if line.startswith("VmData:"):
            return int(line.split()[1]) * 1024
    return 0


def _change_share(pid: int, given: autogroup.Shares, share: int, largest: int) -> str:
    if share > largest:
        return f"no machine had more than {largest} when this one was started"
    nice = autogroup.steps(share, largest)
    try:
        if not given.sessions:
            for task in os.listdir(f"/proc/{pid}/task"):
                os.setpriority(os.PRIO_PROCESS, int(task), nice)
        elif nice:
            given.give(pid, share, largest)  # in its turn: the kernel takes ten a second from all
        else:
            write(f"/proc/{pid}/autogroup", "0")
    except OSError as error:
        return f"its weight cannot be changed: {error.strerror}"
    return ""
