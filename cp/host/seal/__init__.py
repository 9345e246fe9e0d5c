"""The seal: what a machine loses before its program's first instruction. Standard library only.

A :class:`SealKit` is made once in a saved system (paths surveyed, filters assembled, everything tried out in a scratch
process); each machine gets a :class:`Seal` from it, whose steps :mod:`retinue.svm.boot` calls in this order::

    session  descriptors  root  limits  privileges  parent  files  calls

Every step stands for itself; why the order is what it is stands at each step. One that fails raises SealFailed (an
OSError) and the machine must not run.
"""

import contextlib
import errno
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from retinue.cp.host import libc
from retinue.cp.host.errors import SealFailed
from retinue.cp.host.seal import code, hygiene, landlock, namespaces, policy, trial, users
from retinue.cp.host.seal import root as roots

__all__ = ["Seal", "SealKit"]

_DEVICE_RIGHTS = {"/dev/null": landlock.READ_WRITE, "/dev/full": landlock.READ_WRITE}

NEEDED_BY_EXEC = ("mount-ns", "pid-ns", "net-ns", "ipc-ns")
"""Without these its sockets would reach those of the host, whose names Landlock does not look at, and its processes
could outlive it."""

RUN = "/run"
"""Where an ``exec`` machine has its UNIX sockets."""
RUN_SIZE = 1024 * 1024
"""Bytes: for sockets, lock files and pid files."""


class SealKit:
    """What all machines of one saved system have in common.

    :param import_path: the sys.path every machine has.
    :param network: the machines keep the host's network.
    :param inside: the namespaces it stands in.
    :raises SealFailed: nothing is known about this machine architecture.
    """

    def __init__(self, import_path: Sequence[str], *, network: bool, inside: namespaces.Inside) -> None:
        if libc.MACHINE not in ("x86_64", "aarch64"):
            raise SealFailed("calls", f"architecture {libc.MACHINE}", errno.ENOSYS, "x86_64 and aarch64 are supported")
        self.network = network
        self.inside = inside
        self.parent = os.getpid()
        self.workshop: roots.Workshop | None = None
        self.own_pid_namespace = inside.home >= 0
        self._proc_covered = False
        self.absent = dict(inside.absent)
        self.signals: list[int] = []
        self.image = hygiene.Image(0, 0)
        self._import_path = list(import_path)
        self._common = [*code.interpreter_paths(), *code.library_paths(import_path)]
        if network:
            self._common += code.NAME_SERVICE
        self._filters: dict[tuple[str, bool], policy.Filter] = {}
        self._patterns: dict[tuple[str, ...], tuple[tuple[int, ...], roots.Plan, roots.Pattern | None]] = {}

    def complete(self) -> None:
        """Note what only shows when everything is imported and set up, cover /proc, and try all of it out."""
        self.signals = hygiene.changed_signals()
        self.image = hygiene.image(self.inside.proc)
        if self.has("mount-ns"):
            try:
                self.workshop = roots.Workshop()
                self._proc_covered = True
            except OSError as error:
                self.absent["mount-ns"] = f"nothing can be mounted in it: {error.strerror}"
        birth = {"machine": "scratch", "storage": 0, "disks": (), "code": (), "uid": users.FIRST_OWN}
        try:
            self.prepare(birth)
        except SealFailed as error:
            if self.workshop is None:
                raise
            self.absent["mount-ns"] = str(error)
            self.workshop = None
            self.prepare(birth)
        self.absent |= trial.absent(self.seal(birth).steps())
        # Each pattern that stands costs every machine some time, for a namespace begins as a copy.
        _, _, pattern = self._patterns.pop(self._key(birth))
        if self.workshop is not None and pattern is not None:
            self.workshop.remove(pattern)
        if "mount-ns" in self.absent:
            self.workshop = None

    @property
    def layers(self) -> list[tuple[str, bool, str]]:
        """Every layer there could be: its name, whether machines have it, why not or its version."""
        versions = {"seccomp": f"{len(self.filter('program'))} steps"}
        with contextlib.suppress(SealFailed):
            versions["landlock"] = f"ABI {landlock.abi()}"
        names = ["no-new-privs", "landlock", "seccomp", *namespaces.LAYERS, "own-uid", "tasks"]
        found = [(name, name not in self.absent, self.absent.get(name, versions.get(name, ""))) for name in names]
        return [*found, ("no-proc", self._proc_covered, "" if self._proc_covered else self.absent["mount-ns"])]

    def has(self, layer: str) -> bool:
        """Whether machines have a layer."""
        return layer not in self.absent

    def filter(self, profile: str) -> policy.Filter:
        """The system-call filter of a profile. Made when it is first asked for: better here than in each machine."""
        rooted = self.workshop is not None
        if (profile, rooted) not in self._filters:
            self._filters[profile, rooted] = policy.policy(profile, rooted=rooted)
        return self._filters[profile, rooted]

    def profile(self, birth: Mapping[str, Any]) -> str:
        """Which system calls a machine needs."""
        return "network" if self.network else "exec" if birth.get("kind") == "exec" else "program"

    def plan(self, birth: Mapping[str, Any]) -> tuple[roots.Plan, roots.Pattern | None]:
        """What a machine may read, and its place in the workshop if there is one."""
        return self._patterns[self._key(birth)][1:]

    def prepare(self, birth: Mapping[str, Any]) -> None:
        """Before the fork: whatever the next machines of this kind will need as well.

        :raises SealFailed: also if it is an ``exec`` machine, and there is no sealing one on this host.
        """
        profile = self.profile(birth)
        if profile == "exec":
            for layer in NEEDED_BY_EXEC:
                if not self.has(layer):
                    raise SealFailed("exec", f"a machine without {layer}", errno.EPERM, self.absent[layer])
        self.filter(profile)
        key = self._key(birth)
        watched = (*birth["code"], *self._import_path, *(code.NAME_SERVICE if self.network else ()))
        # A module that is new, or has been replaced by another file, is not what is mounted.
        seen = tuple(number for path in watched for number in _identity(path))
        if key in self._patterns:
            if self._patterns[key][0] == seen:
                return
            old = self._patterns.pop(key)[2]
            if old is not None and self.workshop is not None:
                self.workshop.remove(old)
        code.find_modules(birth["code"], self._import_path)
        try:
            plan = self._plan(birth)
            self._patterns[key] = seen, plan, self.workshop.pattern(plan) if self.workshop else None
        except OSError as error:
            hint = roots.HINTS.get(error.errno or 0, "")
            raise SealFailed("root", "what many machines have", error.errno or 0, hint) from error

    def seal(self, birth: Mapping[str, Any]) -> "Seal":
        """The steps for one machine; ``birth`` as in :class:`retinue.cp.host.interface.Birth`."""
        return Seal(self, birth)

    def _key(self, birth: Mapping[str, Any]) -> tuple[str, ...]:
        return (self.profile(birth), *birth["code"])

    def _plan(self, birth: Mapping[str, Any]) -> roots.Plan:
        links: dict[str, str] = {}
        runnable = code.DISTRIBUTION if self.profile(birth) == "exec" else ()
        programs = {code.resolved(path, links) for path in runnable if os.path.exists(path)}
        paths = [*self._common, *code.program_paths(birth["code"])]
        found = code.outermost([*programs, *(code.resolved(path, links) for path in paths if os.path.exists(path))])
        listed = {code.resolved(path, links) for path in (*self._import_path, *birth["code"]) if os.path.isdir(path)}
        return roots.Plan(tuple(found), frozenset(programs), links, tuple(sorted(listed)))


class Seal:
    """The steps of sealing the calling process, for :mod:`retinue.svm.boot`."""

    def __init__(self, kit: SealKit, birth: Mapping[str, Any]) -> None:
        self._kit = kit
        self._birth = birth
        self._native = kit.profile(birth) == "exec"
        self._plan, self._pattern = kit.plan(birth)
        self._user = birth.get("uid", -1) if kit.has("own-uid") else -1
        self._in_root = False

    def session(self) -> None:
        """Own session, umask, working directory, signals, no core. First: what follows should not be interrupted."""
        hygiene.leave_session(self._birth["machine"], self._kit.signals)

    def descriptors(self, keep: Collection[int]) -> None:
        """Close every descriptor but 0, 1, 2 and ``keep``; 0 is /dev/null. Before root, which leaves the host's /dev.

        One that privileges needs is closed there.
        """
        hygiene.keep_descriptors({*keep, self._kit.inside.proc})

    def root(self) -> None:
        """A root of its own. After session, for the folder one stands in; before privileges, for it takes some."""
        if self._native:
            # It may open UNIX sockets, and give them names that all of one namespace can see.
            libc.unshare(libc.CLONE_NEWNET | libc.CLONE_NEWIPC)
        if self._pattern is not None:
            roots.enter(self._pattern, self._own_mounts(), self._files())
        self._in_root = True

    def limits(self) -> None:
        """Resource limits. Before the program can allocate anything; does not depend on other steps."""
        birth = self._birth
        sizes = birth["storage"], birth.get("file_size", 0), birth.get("segments", 0)
        hygiene.set_limits(*sizes, self._kit.image, native=self._native)

    def privileges(self) -> None:
        """Its own user, its own user namespace, no_new_privs and no capability. After root, which asks for some.

        Before files and calls: without no_new_privs the kernel lets only root do those. A machine with the host's
        network keeps the right to bind a port below 1024, if the system has it.
        """
        if self._user >= 0:
            users.become(self._user, keep_capabilities=self._outside)
        if tasks := self._kit.has("tasks"):
            self._own_namespace()
        # Only now: a namespace remembers a limit at its making as that of all that are in the one around it.
        hygiene.limit_counted(tasks=tasks)
        os.close(self._kit.inside.proc)
        hygiene.drop_privileges(1 << hygiene.CAP_NET_BIND_SERVICE if self._outside and self._kit.network else 0)

    def parent(self) -> None:
        """Die with the saved system. After privileges (a change of user would undo it), before calls (it is prctl).

        The kernel kills every process of a PID namespace with the one that made the saved system's; elsewhere the
        parent is looked at a second time, for it may have died before.
        """
        libc.prctl(libc.PR_SET_PDEATHSIG, 9)
        if not self._kit.own_pid_namespace and os.getppid() != self._kit.parent:
            raise SealFailed("parent", "saved system", errno.ESRCH)

    def files(self) -> None:
        """Landlock: its disks, and code read-only, nothing else. After privileges and root.

        A host without Landlock will do where the machine has a root and PIDs of its own.
        """
        if not self._in_root:
            raise SealFailed("files", "root", errno.EINVAL, "the step root comes first")
        seen = () if self._pattern is not None else self._birth["code"]
        for folder in (*self._birth["disks"], *self._birth.get("links", ()), *seen):
            try:
                os.listdir(folder)
            except OSError as error:
                raise SealFailed("files", folder, error.errno or 0, landlock.REACH) from error
        if self._kit.has("landlock"):
            landlock.restrict(self._grants(), network=self._kit.network)
        elif self._pattern is None or not self._kit.own_pid_namespace:
            raise SealFailed("files", "Landlock", errno.EOPNOTSUPP, self._kit.absent["landlock"])

    def calls(self) -> None:
        """seccomp. Last: it takes away the calls the other steps are made of."""
        self._kit.filter(self._kit.profile(self._birth)).load(os.getpid())

    def steps(self) -> trial.Steps:
        """What a trial of the seal does, for a machine that has neither disks nor code."""
        kit = self._kit
        return trial.Steps(
            descriptors=lambda kept: self.descriptors((kept,)),
            root=self._root_for_trial,
            user=partial(users.become, users.FIRST_OWN, keep_capabilities=self._outside)
            if os.geteuid() == 0
            else "only root can make machines run as other users",
            readable=self._plan.readable,
            namespace=self._own_namespace,
            privileges=partial(hygiene.drop_privileges),
            files=partial(landlock.restrict, self._grants(), network=kit.network),
            calls=self.calls,
        )

    def _root_for_trial(self) -> None:
        if self._pattern is None:
            raise OSError(errno.EPERM, self._kit.absent["mount-ns"])
        roots.enter(self._pattern, (), {})

    @property
    def _outside(self) -> bool:
        """Whether it stands in the host's own user namespace, where capabilities count.

        A sealed machine without any namespace does so, too, and yet has nothing but one of users to be counted by.
        """
        flags = self._kit.inside.flags
        return (self._kit.network or flags != 0) and not flags & libc.CLONE_NEWUSER

    def _own_namespace(self) -> None:
        """Where nobody else is counted with it: outside, nobody else is the user it is."""
        if not self._outside:
            users.own_namespace(self._kit.inside.proc)

    def _own_mounts(self) -> Iterator[roots.Own]:
        birth = self._birth
        yield from map(roots.writable, birth["disks"])
        yield from map(roots.linked, birth.get("links", ()))
        for folder, size in birth.get("temporary", ()):
            yield roots.temporary(folder, size, self._user)
        if self._native:
            yield roots.temporary(RUN, RUN_SIZE, self._user)
            if birth["executable"]:
                links: dict[str, str] = {}
                program = code.resolved(birth["executable"], links)
                if code.outermost([*self._plan.readable, program]) != list(self._plan.readable):
                    yield roots.readable(birth["executable"])

    def _files(self) -> dict[str, str]:
        """Files that are made for it."""
        if not self._native:
            return {}
        name, user = self._birth["machine"].lower(), self._user if self._user >= 0 else os.geteuid()
        group = self._user if self._user >= 0 else os.getegid()
        return {
            "/etc/passwd": f"{name}:x:{user}:{group}::{RUN}:/bin/sh\n",
            "/etc/group": f"{name}:x:{group}:\n",
            "/etc/nsswitch.conf": "passwd: files\ngroup: files\n",
        }

    def _grants(self) -> list[tuple[str, int]]:
        birth, plan = self._birth, self._plan
        grants = [(path, landlock.PROGRAM if path in plan.runnable else landlock.CODE) for path in plan.readable]
        grants += [(path, _DEVICE_RIGHTS.get(path, landlock.READ)) for path in roots.DEVICES]
        grants += [(path, landlock.DISK) for path in birth["disks"]]
        grants += [(path, landlock.CODE) for path in birth.get("links", ())]
        grants += [(path, landlock.DISK) for path, _ in birth.get("temporary", ())]
        if self._native:
            grants += [(RUN, landlock.RUN), *((path, landlock.READ) for path in self._files())]
            if birth["executable"]:
                grants.append((birth["executable"], landlock.PROGRAM))
        return grants


def _identity(path: str) -> tuple[int, int]:
    try:
        found = os.stat(path)
    except OSError:
        return 0, 0
    return found.st_ino, found.st_mtime_ns
