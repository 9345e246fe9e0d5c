"""Attempts at files: of the host, of the topology, of other machines; by name, by links, by descriptors.

Standard library only. Landlock answers EACCES, an empty root ENOENT, a read-only mount EROFS, another mount EXDEV.
"""

import errno
import os
from collections.abc import Callable
from typing import Final

from tests.escapes.inside.attempt import REFUSALS, ROOT, USER, World, attempt, refused, survivors
from tests.escapes.inside.kernel import call

_NO_CHANGE: Final = REFUSALS | {errno.EROFS, errno.EXDEV}
# Without a root of its own a machine sees the names and attributes of what it may not open.
_LOOK: Final = {"mount-ns": "Landlock does not look at stat(2), access(2) and readlink(2)"}

_IN_OWN_ROOT: Final = {"exec": "its own root has one: who it is, a shell for scripts, a place for sockets"}

_SOMEWHERE: Final = "not every host has it, or lets this user read it"

# Files of the host and of the system: name, path, where they can be read without a seal.
_FILES: Final = {
    "etc-passwd": ("/etc/passwd", USER),
    "etc-shadow": ("/etc/shadow", ROOT),
    "etc-machine-id": ("/etc/machine-id", _SOMEWHERE),
    "etc-hostname": ("/etc/hostname", _SOMEWHERE),
    "root-ssh-key": ("/root/.ssh/id_ed25519", _SOMEWHERE),
    "home-profile": ("{home}/.profile", _SOMEWHERE),
    "bin-sh": ("/bin/sh", USER),
    "outside-secret": ("{outside}/secret", USER),
    "topology": ("{topology}/it.toml", USER),
    "key-beside-topology": ("{topology}/secret.key", USER),
    "data-beside-topology": ("{topology}/data/secret", USER),
    "nucleus-log": ("{state}/nucleus.log", USER),
    "system-note": ("{runtime}/system.json", USER),
    "other-machines-disk": ("{other_disk}/mine", USER),
    "dots": ("{disk}/../../../../../../../../../../etc/passwd", USER),
    "link-of-another": ("{disk}/laid/secret", USER),
    "kmsg": ("/dev/kmsg", _SOMEWHERE),
    "mem": ("/dev/mem", _SOMEWHERE),
    "kvm": ("/dev/kvm", _SOMEWHERE),
    "disk-device": ("/dev/vda", _SOMEWHERE),
    "tty": ("/dev/tty", "a test has no terminal"),
    "fuse": ("/dev/fuse", _SOMEWHERE),
    "sys-notes": ("/sys/kernel/notes", _SOMEWHERE),
    "sys-cgroup": ("/sys/fs/cgroup/cgroup.procs", _SOMEWHERE),
    "debugfs": ("/sys/kernel/debug/sched/debug", _SOMEWHERE),
}
_FOLDERS: Final = {
    "root": "/",
    "etc": "/etc",
    "home": "/home",
    "tmp": "/tmp",
    "dev": "/dev",
    "run": "/run",
    "sys": "/sys",
    "outside": "{outside}",
    "topology": "{topology}",
    "state": "{state}",
    "disks": "{state}/disks",
    "other-machines-disk": "{other_disk}",
}
_WRITES: Final = {
    "outside-secret": ("{outside}/secret", USER),
    "outside-new": ("{outside}/new", USER),
    "tmp-new": ("/tmp/retinue-gallery-{other}", USER),
    "dev-shm-new": ("/dev/shm/retinue-gallery-{other}", USER),
    "root-new": ("/retinue-gallery-{other}", ROOT),
    "topology-program": ("{topology}/tests/escapes/inside/files.py", USER),
    "topology-new": ("{topology}/sitecustomize.py", USER),
    "other-machines-disk": ("{other_disk}/mine", USER),
    "library": (os.__file__, ROOT),
    "urandom": ("/dev/urandom", USER),
    "core-pattern": ("/proc/sys/kernel/core_pattern", _SOMEWHERE),
    "cgroup": ("/sys/fs/cgroup/memory/memory.limit_in_bytes", _SOMEWHERE),
}


def path_of(template: str, world: World) -> str:
    """A path with the names of the world's folders in braces."""
    return template.format(**world._asdict())


def read(path: str) -> bytes:
    """The beginning of a file."""
    with open(path, "rb") as file:
        return file.read(100)


def _enter_files() -> None:
    for name, (template, unsealed) in _FILES.items():

        def read_it(world: World, template: str = template) -> object:
            return read(path_of(template, world))

        refusals = REFUSALS | {errno.ELOOP, errno.ENXIO}
        allowed = _IN_OWN_ROOT if name in ("etc-passwd", "dots", "bin-sh") else {}
        attempt(f"files/read-{name}", unsealed=unsealed, refusals=refusals, allowed=allowed)(read_it)
    for name, template in _FOLDERS.items():

        def list_it(world: World, template: str = template) -> object:
            return os.listdir(path_of(template, world))

        attempt(f"files/list-{name}", allowed=_IN_OWN_ROOT if name == "run" else {})(list_it)
    for name, (template, unsealed) in _WRITES.items():

        def write_it(world: World, template: str = template) -> object:
            descriptor = os.open(path_of(template, world), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            os.close(descriptor)
            return "opened"

        needs = {"landlock": "a read-only mount does not concern devices"} if name == "urandom" else {}
        attempt(f"files/write-{name}", unsealed=unsealed, refusals=_NO_CHANGE, needs=needs)(write_it)


_enter_files()


@attempt("files/list-own-root-shows-nothing-of-the-host")
def _own_root(_: World) -> object:
    """An empty root may be listed, if at all; what it shows must not be the host's."""
    return [name for name in os.listdir("/") if name in ("root", "boot", "sbin", "srv", "opt", "media")] or fail()


def fail(number: int = errno.ENOENT) -> object:
    """There was nothing to find."""
    raise refused(number)


@attempt("files/o-path-and-reopen")
def _reopen(world: World) -> object:
    """O_PATH is no opening; what it gives is reopened by the names it has."""
    descriptor = os.open(f"{world.outside}/secret", os.O_PATH)
    return survivors(
        {
            "proc": lambda: read(f"/proc/self/fd/{descriptor}"),
            "dev": lambda: read(f"/dev/fd/{descriptor}"),
            "empty": lambda: os.open("", os.O_RDONLY, dir_fd=descriptor),
        }
    )


def code_file(world: World) -> str:
    """A file that the machine may read and not write: its program, or the library where that lies on its own disk."""
    return os.__file__ if world.profile == "exec" else __file__


@attempt("files/truncate-while-reading", refusals=_NO_CHANGE, unsealed="it would empty the test's own program")
def _truncate_while_reading(world: World) -> object:
    """O_TRUNC asks for no write access."""
    return os.open(code_file(world), os.O_RDONLY | os.O_TRUNC)


def _fresh(world: World, name: str) -> str:
    path = f"{world.disk}/{name}"
    if os.path.lexists(path):
        os.unlink(path)
    return path


@attempt("links/symlink-to-outside")
def _symlink(world: World) -> object:
    """A symbolic link of its own making."""
    inside = _fresh(world, "soft")
    os.symlink(f"{world.outside}/secret", inside)
    return read(inside)


@attempt("links/symlink-to-other-machine")
def _symlink_to_other(world: World) -> object:
    inside = _fresh(world, "soft-other")
    os.symlink(f"{world.other_disk}/mine", inside)
    return read(inside)


@attempt("links/symlink-to-proc", refusals=REFUSALS)
def _symlink_to_proc(world: World) -> object:
    inside = _fresh(world, "soft-proc")
    os.symlink("/proc/self/root/etc/passwd", inside)
    return read(inside)


@attempt("links/hard-link-to-outside", refusals=_NO_CHANGE, unsealed="the folders may lie on two file systems")
def _hard_link(world: World) -> object:
    inside = _fresh(world, "hard")
    os.link(f"{world.outside}/secret", inside)
    return read(inside)


@attempt("links/hard-link-to-other-machine", refusals=_NO_CHANGE)
def _hard_link_to_other(world: World) -> object:
    inside = _fresh(world, "hard-other")
    os.link(f"{world.other_disk}/mine", inside)
    return read(inside)


@attempt("links/hard-link-to-code", refusals=_NO_CHANGE, unsealed=USER)
def _hard_link_to_code(world: World) -> object:
    """A further name for a shared file would show in its link count."""
    inside = _fresh(world, "hard-code")
    os.link(code_file(world), inside)
    return os.stat(inside).st_nlink


@attempt("links/hard-link-outwards", refusals=_NO_CHANGE, unsealed=USER)
def _hard_link_outwards(world: World) -> object:
    """Its own file under a name outside."""
    inside = f"{world.disk}/own"
    with open(inside, "w") as file:
        file.write("x")
    os.link(inside, f"{world.topology}/data/from-inside")
    return "linked"


@attempt("links/rename-from-outside", refusals=_NO_CHANGE, unsealed="the secret would be gone")
def _rename(world: World) -> object:
    os.rename(f"{world.outside}/secret", f"{world.disk}/moved")
    return "moved"


@attempt("links/rename-exchange", refusals=_NO_CHANGE, unsealed="the secret would be gone")
def _exchange(world: World) -> object:
    """Two names change places (RENAME_EXCHANGE)."""
    with open(f"{world.disk}/own", "w") as file:
        file.write("x")
    return call((316, 276), -100, f"{world.disk}/own".encode(), -100, f"{world.other_disk}/mine".encode(), 2)


@attempt("links/unlink-outside", refusals=_NO_CHANGE, unsealed="the secret would be gone")
def _unlink(world: World) -> object:
    return survivors(
        {
            "secret": lambda: os.unlink(f"{world.outside}/secret"),
            "other": lambda: os.unlink(f"{world.other_disk}/mine"),
            "folder": lambda: os.rmdir(f"{world.topology}/empty"),
        },
        _NO_CHANGE,
    )


@attempt("links/replace-own-disk-by-a-link", refusals=_NO_CHANGE | {errno.EBUSY, errno.ENOTEMPTY}, unsealed="it would")
def _replace_disk(world: World) -> object:
    """The next generation would be given whatever the link leads to."""
    os.rename(world.disk, world.disk + "-old")
    os.symlink("/", world.disk)
    return "replaced"


@attempt("metadata/chmod", refusals=_NO_CHANGE | {errno.ENOSYS})
def _chmod(world: World) -> object:
    path = f"{world.outside}/secret"
    return survivors(
        {
            "chmod": lambda: os.chmod(path, 0o666),
            "fchmodat": lambda: call((268, 53), -100, path.encode(), 0o666, 0),
            "fchmodat2": lambda: call((452, 452), -100, path.encode(), 0o666, 0),
        },
        _NO_CHANGE | {errno.ENOSYS},
    )


@attempt("metadata/chown", refusals=_NO_CHANGE)
def _chown(world: World) -> object:
    path = f"{world.outside}/secret"
    return survivors(
        {"chown": lambda: os.chown(path, os.getuid(), -1), "lchown": lambda: os.lchown(path, os.getuid(), -1)},
        _NO_CHANGE,
    )


@attempt("metadata/utime", refusals=_NO_CHANGE)
def _utime(world: World) -> None:
    os.utime(f"{world.outside}/secret", (0, 0))


@attempt("metadata/truncate", refusals=_NO_CHANGE)
def _truncate(world: World) -> None:
    os.truncate(f"{world.topology}/data/long", 1)


@attempt("metadata/xattr", refusals=_NO_CHANGE | {errno.ENOTSUP})
def _xattr(world: World) -> None:
    os.setxattr(f"{world.topology}/data/long", "user.retinue", b"x")


def _on_what_it_may_only_read(world: World, change: Callable[[int], object]) -> object:
    descriptor = os.open(code_file(world), os.O_RDONLY)
    try:
        return repr(change(descriptor))
    finally:
        os.close(descriptor)


@attempt("metadata/fchmod-of-code", refusals=_NO_CHANGE)
def _fchmod_code(world: World) -> object:
    """Its own program, opened to be read: others could be let write to it."""
    mode = os.stat(code_file(world)).st_mode & 0o777
    return _on_what_it_may_only_read(world, lambda descriptor: os.fchmod(descriptor, mode))


@attempt("metadata/fchmod-of-the-library", refusals=_NO_CHANGE, unsealed=ROOT)
def _fchmod_library(_: World) -> object:
    descriptor = os.open(os.__file__, os.O_RDONLY)
    try:
        os.fchmod(descriptor, os.fstat(descriptor).st_mode & 0o777)
    finally:
        os.close(descriptor)
    return "changed"


@attempt("metadata/futimens-of-code", refusals=_NO_CHANGE)
def _futimens_code(world: World) -> object:
    times = os.stat(code_file(world))
    return _on_what_it_may_only_read(
        world, lambda descriptor: os.utime(descriptor, ns=(times.st_atime_ns, times.st_mtime_ns))
    )


@attempt("metadata/fchown-of-code", refusals=_NO_CHANGE)
def _fchown_code(world: World) -> object:
    return _on_what_it_may_only_read(world, lambda descriptor: os.fchown(descriptor, os.getuid(), -1))


@attempt("metadata/flags-of-code", refusals=_NO_CHANGE | {errno.ENOTTY})
def _flags_code(world: World) -> object:
    """FS_IOC_GETFLAGS and what sets them."""
    import fcntl

    return _on_what_it_may_only_read(world, lambda descriptor: fcntl.ioctl(descriptor, 0x80086601, b"\0" * 8))


@attempt("metadata/stat-outside", needs=_LOOK)
def _stat(world: World) -> object:
    return os.stat(f"{world.outside}/secret").st_size


@attempt("metadata/stat-of-another-disk", needs=_LOOK | {"own-uid": "without it the user of all disks is the same"})
def _stat_other(world: World) -> object:
    return os.stat(f"{world.other_disk}/mine").st_size


@attempt("metadata/readlink-outside", needs=_LOOK)
def _readlink(world: World) -> object:
    return os.readlink(f"{world.outside}/link")


@attempt("metadata/statfs-of-the-host", needs=_LOOK)
def _statfs(_: World) -> object:
    return os.statvfs("/boot").f_bfree


@attempt("devices/mknod-character", unsealed=ROOT)
def _mknod_character(world: World) -> object:
    path = _fresh(world, "null")
    os.mknod(path, 0o20666, os.makedev(1, 3))
    return "made"


@attempt("devices/mknod-block", unsealed=ROOT)
def _mknod_block(world: World) -> object:
    path = _fresh(world, "vda")
    os.mknod(path, 0o60666, os.makedev(254, 0))
    return "made"


@attempt("devices/mknod-fifo", allowed={"exec": "programs talk to their own processes with it"})
def _mknod_fifo(world: World) -> object:
    """A channel in a folder that somebody else may see, too."""
    path = _fresh(world, "pipe")
    os.mkfifo(path)
    return "made"


@attempt("devices/random-entropy", refusals=REFUSALS | {errno.EBADF})
def _random_entropy(_: World) -> object:
    import fcntl

    with open("/dev/urandom", "rb") as file:
        return fcntl.ioctl(file.fileno(), 0x80045200, b"\0" * 4)  # RNDGETENTCNT


@attempt("privileges/set-user-id-file", refusals=_NO_CHANGE)
def _set_user_id(world: World) -> object:
    """A file that runs as the user the machine runs as, for whoever finds it."""
    path = f"{world.disk}/program"

    def change() -> None:
        with open(path, "w") as file:
            os.fchmod(file.fileno(), 0o4755)

    return survivors({"fchmod": change, "open": lambda: os.open(path + "1", os.O_CREAT | os.O_WRONLY, 0o4755)})


@attempt("files/dev-shm", refusals=REFUSALS)
def _dev_shm(world: World) -> object:
    """Where POSIX shared memory lies."""
    path = f"/dev/shm/retinue-{world.other}"
    with open(path, "wb") as file:
        file.write(b"x")
    os.unlink(path)
    return "written"
