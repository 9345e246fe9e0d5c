"""Attempts at sockets of every family, and with the sockets and descriptors a machine was given. Standard library."""

import array
import contextlib
import errno
import os
import resource
import socket
import stat
import struct
from functools import partial
from typing import Final

from tests.escapes.inside.attempt import REFUSALS, ROOT, USER, World, attempt, refused, survivors

FAMILIES: Final = 64  # Linux has some 46
_KINDS: Final = (1, 2, 3, 4, 5, 6, 10)
_UNIX, _INET, _INET6 = 1, 2, 10
# A family that the kernel does not have is refused, too: the filter looks first.
_NONE: Final = REFUSALS | {errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT, errno.ESOCKTNOSUPPORT}
_TCP: Final = {"network": "it is there for it"}
_UNIX_OWN: Final = {"exec": "programs serve and dial UNIX sockets in their own root"}
_SELDOM: Final = "not every kernel has it"

_NAMED: Final = {
    "unix": (1, USER, _UNIX_OWN),
    "inet": (2, USER, _TCP),
    "inet6": (10, _SELDOM, _TCP),
    "netlink": (16, USER, {}),
    "packet": (17, ROOT, {}),
    "alg": (38, _SELDOM, {}),
    "vsock": (40, _SELDOM, {}),
    "bluetooth": (31, _SELDOM, {}),
    "can": (29, _SELDOM, {}),
    "tipc": (30, _SELDOM, {}),
    "xdp": (44, _SELDOM, {}),
    "qipcrtr": (42, _SELDOM, {}),
    "smc": (43, _SELDOM, {}),
    "rds": (21, _SELDOM, {}),
    "key": (15, _SELDOM, {}),
    "mctp": (45, _SELDOM, {}),
}


def _enter_families() -> None:
    for name, (family, unsealed, allowed) in _NAMED.items():

        def open_it(_: World, family: int = family) -> object:
            kinds = (3, 2) if family in (16, 17) else (1, 5, 2, 3)
            return survivors({str(kind): partial(_open, family, kind) for kind in kinds}, _NONE)

        attempt(f"sockets/family-{name}", refusals=_NONE, unsealed=unsealed, allowed=allowed)(open_it)


def _open(family: int, kind: int, protocol: int = 0) -> object:
    with socket.socket(family, kind, protocol) as made:
        return made.type


_enter_families()


@attempt("sockets/every-family-and-kind", refusals={errno.EPERM})
def _every(world: World) -> object:
    """All there are: EPERM, but for TCP and UDP in the machine with the network and UNIX sockets in an exec machine."""
    internet = {(_INET, 1), (_INET6, 1), (_INET, 2), (_INET6, 2)}
    may = {"network": internet, "exec": {(_UNIX, 1), (_UNIX, 2), (_UNIX, 5)}}.get(world.profile, set())
    found = []
    for family in range(FAMILIES):
        for kind in _KINDS:
            try:
                _open(family, kind)
            except OSError as error:
                if error.errno == errno.EPERM:
                    continue
            if (family, kind) not in may:
                found.append((family, kind))
    return found or _refuse(errno.EPERM)


def _refuse(number: int) -> object:
    raise refused(number)


@attempt("sockets/protocols-of-inet", refusals=_NONE)
def _protocols(_: World) -> object:
    """SCTP, MPTCP, raw IP, ICMP by datagram."""
    kinds = {"sctp": (1, 132), "mptcp": (1, 262), "raw": (3, 1), "ping": (2, 1), "dccp": (6, 33), "smc": (1, 256)}
    return survivors(
        {name: partial(_open, 2, kind, number) for name, (kind, number) in kinds.items()},
        _NONE,
    )


@attempt("sockets/connect-to-the-operator", refusals=_NONE | {errno.ECONNREFUSED})
def _operator(world: World) -> object:
    """Who has it commands the system."""
    with socket.socket(_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.connect(world.operator)
    return "connected"


@attempt("sockets/connect-to-a-path", refusals=_NONE | {errno.ECONNREFUSED})
def _path(world: World) -> object:
    with socket.socket(_UNIX, socket.SOCK_STREAM) as sock:
        sock.connect(world.unix)
    return "connected"


@attempt("sockets/connect-to-an-abstract-name", refusals=_NONE | {errno.ECONNREFUSED})
def _abstract(world: World) -> object:
    with socket.socket(_UNIX, socket.SOCK_STREAM) as sock:
        sock.connect("\0" + world.abstract)
    return "connected"


@attempt("sockets/datagram-to-a-path", refusals=_NONE | {errno.ECONNREFUSED})
def _datagram(world: World) -> object:
    """A datagram socket pair can send to any address."""
    with socket.socketpair(_UNIX, socket.SOCK_DGRAM)[0] as sock:
        return sock.sendto(b"out", world.datagram)


@attempt("sockets/pair-of-another-family", refusals=_NONE | {errno.EOPNOTSUPP}, unsealed=_SELDOM)
def _pair(_: World) -> object:
    """TIPC makes pairs, too."""
    return socket.socketpair(30, socket.SOCK_SEQPACKET)


@attempt("sockets/pair-connected-elsewhere", refusals=_NONE | {errno.EISCONN, errno.EINVAL}, unsealed="it is connected")
def _connect_again(world: World) -> object:
    """A pair it may make, connected to something else."""
    left, right = socket.socketpair()
    with left, right:
        left.connect(world.unix)
    return "connected"


@attempt("sockets/pair-with-a-name", refusals=_NONE, allowed=_UNIX_OWN)
def _bind_pair(world: World) -> object:
    """A pair it may make, with a name on its disk. Nobody can connect to it: it cannot listen."""
    left, right = socket.socketpair()
    os.chdir(world.disk)  # a name of a socket may be 107 bytes long
    with contextlib.suppress(FileNotFoundError):
        os.unlink("socket")
    try:
        with left, right:
            left.bind("socket")
    finally:
        os.chdir("/")
    return "bound"


@attempt("sockets/tcp-to-the-host", refusals=_NONE | {errno.ENETUNREACH}, allowed=_TCP)
def _tcp(world: World) -> object:
    with socket.create_connection(("127.0.0.1", world.port), 5):
        return "connected"


@attempt("sockets/udp-to-the-host", refusals=_NONE | {errno.ENETUNREACH}, allowed=_TCP)
def _udp(world: World) -> object:
    with socket.socket(_INET, socket.SOCK_DGRAM) as sock:
        return sock.sendto(b"out", ("127.0.0.1", world.port))


@attempt("sockets/resolve-a-name", refusals=_NONE | {errno.ENETUNREACH}, unsealed="a host may have no name service")
def _resolve(_: World) -> object:
    """A name service daemon is asked over a UNIX socket, a server over UDP."""
    with socket.socket(_UNIX, socket.SOCK_STREAM) as sock:
        sock.connect("/run/nscd/socket")
    return "connected"


@attempt("sockets/attach-a-bpf-program", refusals=REFUSALS)
def _attach_bpf(_: World) -> object:
    """A classic BPF program, which the kernel compiles."""
    left, right = socket.socketpair()
    with left, right:
        import ctypes

        code = ctypes.create_string_buffer(struct.pack("<HBBI", 6, 0, 0, 0xFFFF), 8)
        program = struct.pack("@HP", 1, ctypes.addressof(code))
        return left.setsockopt(socket.SOL_SOCKET, 26, program)


_EXEC_OPTIONS: Final = ("PASSCRED", "PRIORITY", "PEEK_OFF")


@attempt("sockets/options", refusals=REFUSALS)
def _options(world: World) -> object:
    """Options of a socket that have no place in a service; programs of a distribution have use for some."""
    left, right = socket.socketpair()
    names = {"ATTACH_BPF": 50, "LOCK_FILTER": 44, "BUSY_POLL": 46, "MARK": 36, "PASSPIDFD": 76, "PASSCRED": 16}
    names |= {"BINDTODEVICE": 25, "TIMESTAMPING": 37, "ZEROCOPY": 60, "TXTIME": 61, "PEEK_OFF": 42, "PRIORITY": 12}
    if world.profile == "exec":
        names = {name: number for name, number in names.items() if name not in _EXEC_OPTIONS}
    with left, right:
        return survivors(
            {name: partial(left.setsockopt, 1, number, b"\1\0\0\0") for name, number in names.items()},
            REFUSALS,
        )


@attempt("descriptors/pidfd-of-the-peer", refusals=REFUSALS | {errno.ENOPROTOOPT, errno.ENODATA})
def _peer_pidfd(_: World) -> object:
    """SO_PEERPIDFD of a pair tells who made it: of the control path, the control program."""
    left, right = socket.socketpair()
    with left, right:
        return left.getsockopt(socket.SOL_SOCKET, 77)


@attempt(
    "descriptors/pidfd-of-the-control-program",
    refusals=REFUSALS | {errno.ENOPROTOOPT, errno.EBADF, errno.ENOTSOCK},
    unsealed="only a machine has one",
)
def _cp_pidfd(_: World) -> object:
    with socket.socket(fileno=os.dup(3)) as control:
        return control.getsockopt(socket.SOL_SOCKET, 77)


def open_descriptors() -> dict[int, str]:
    """Every descriptor this process has, and what it is."""
    kinds = {stat.S_IFSOCK: "socket", stat.S_IFCHR: "device", stat.S_IFREG: "file", stat.S_IFDIR: "folder"}
    kinds |= {stat.S_IFIFO: "pipe", stat.S_IFBLK: "block device", 0: "anonymous"}
    found = {}
    for number in range(max(4096, resource.getrlimit(resource.RLIMIT_NOFILE)[0])):
        try:
            about = os.fstat(number)
        except OSError:
            continue
        kind = kinds.get(stat.S_IFMT(about.st_mode), "?")
        if kind == "device":
            kind = f"device {os.major(about.st_rdev)}:{os.minor(about.st_rdev)}"
        found[number] = kind
    return found


def send_descriptors(sock: socket.socket, descriptors: list[int]) -> None:
    """One packet with descriptors."""
    sock.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))])
