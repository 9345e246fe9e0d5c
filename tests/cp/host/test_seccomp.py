"""The filter, run by a small interpreter of classic BPF, so that both architectures are tested on either."""

import errno
import itertools
import struct

import pytest

from retinue.cp.host.seal import syscalls
from retinue.cp.host.seal.policy import rules
from retinue.cp.host.seal.seccomp import INSTRUCTIONS_MAX, OWN_PID, Allow, Condition, Filter, Refuse, assemble

ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
PID = 4711
ALLOWED = 0


def run(code: bytes, architecture: int, number: int, arguments: tuple[int, ...]) -> int:
    """What the kernel would do: 0 for an allowed call, else its errno."""
    padded = (*arguments, 0, 0, 0, 0, 0, 0)[:6]
    data = struct.pack("<IIQ6Q", number, architecture, 0, *(one & 0xFFFFFFFFFFFFFFFF for one in padded))
    program = list(struct.iter_unpack("<HBBI", code))
    accumulator = position = 0
    while True:
        operation, if_true, if_false, constant = program[position]
        position += 1
        if operation == 0x20:
            accumulator = struct.unpack_from("<I", data, constant)[0]
        elif operation == 0x54:
            accumulator &= constant
        elif operation == 0x05:
            position += constant
        elif operation == 0x06:
            return ALLOWED if constant == 0x7FFF0000 else constant & 0xFFFF
        else:
            holds = {0x15: accumulator == constant, 0x35: accumulator >= constant, 0x45: bool(accumulator & constant)}
            position += if_true if holds[operation] else if_false


def policy(machine: str, profile: str, *, rooted: bool = True) -> Filter:
    return assemble(
        rules(profile, machine, rooted=rooted),
        default=errno.EPERM,
        unknown_from=syscalls.UNKNOWN_FROM,
        unknown=errno.ENOSYS,
        machine=machine,
    )


NEWUSER, NEWPID, THREAD, STREAM, DGRAM, SEQPACKET, CLOEXEC = 0x10000000, 0x20000000, 0x3D0F00, 1, 2, 5, 0o2000000
EPERM, ENOSYS, ENOTSUP = errno.EPERM, errno.ENOSYS, errno.ENOTSUP
PROFILES = ("program", "network", "exec")

# BINDTODEVICE ATTACH_FILTER SNDBUFFORCE MARK TIMESTAMPING PEEK_OFF LOCK_FILTER BUSY_POLL ATTACH_BPF
# ATTACH_REUSEPORT_CBPF ATTACH_REUSEPORT_EBPF ZEROCOPY TXTIME PASSPIDFD
NEVER_SET = (25, 26, 32, 36, 37, 42, 44, 46, 50, 51, 52, 60, 61, 76)

TABLE: list[tuple[str, tuple[int, ...], int, int, int]] = [
    # call, arguments, program, network, exec
    ("read", (0,), ALLOWED, ALLOWED, ALLOWED),
    ("mmap", (0, 4096), ALLOWED, ALLOWED, ALLOWED),
    ("futex", (), ALLOWED, ALLOWED, ALLOWED),
    ("clone", (THREAD,), ALLOWED, ALLOWED, ALLOWED),
    ("clone", (17,), EPERM, EPERM, ALLOWED),
    ("clone", (THREAD | NEWUSER,), EPERM, EPERM, EPERM),
    ("clone", (17 | NEWUSER,), EPERM, EPERM, EPERM),
    ("clone", (17 | NEWPID,), EPERM, EPERM, EPERM),
    ("clone3", (), ENOSYS, ENOSYS, ENOSYS),
    ("execve", (), EPERM, EPERM, ALLOWED),
    ("setsid", (), EPERM, EPERM, ALLOWED),
    ("socketpair", (1, STREAM | CLOEXEC), ALLOWED, ALLOWED, ALLOWED),
    ("socketpair", (1, SEQPACKET), ALLOWED, ALLOWED, ALLOWED),
    ("socketpair", (1, DGRAM), EPERM, EPERM, ALLOWED),
    ("socketpair", (1, 3), EPERM, EPERM, EPERM),
    ("socketpair", (2, STREAM), EPERM, EPERM, EPERM),
    ("socket", (2, STREAM | CLOEXEC, 0), EPERM, ALLOWED, EPERM),
    ("socket", (10, STREAM, 6), EPERM, ALLOWED, EPERM),
    ("socket", (2, STREAM, 262), EPERM, EPERM, EPERM),
    ("socket", (2, DGRAM, 0), EPERM, ALLOWED, EPERM),
    ("socket", (10, DGRAM | CLOEXEC, 17), EPERM, ALLOWED, EPERM),
    ("socket", (2, DGRAM, 1), EPERM, EPERM, EPERM),
    ("socket", (2, 3, 0), EPERM, EPERM, EPERM),
    ("socket", (1, STREAM, 0), EPERM, EPERM, ALLOWED),
    ("socket", (1, DGRAM | CLOEXEC, 0), EPERM, EPERM, ALLOWED),
    ("socket", (1, 3, 0), EPERM, EPERM, EPERM),
    ("socket", (16, 3, 0), EPERM, EPERM, EPERM),
    ("socket", (40, STREAM, 0), EPERM, EPERM, EPERM),
    ("bind", (), EPERM, ALLOWED, ALLOWED),
    ("connect", (), EPERM, ALLOWED, ALLOWED),
    ("setsockopt", (3, 1, 7), ALLOWED, ALLOWED, ALLOWED),
    ("setsockopt", (3, 6, 1), EPERM, ALLOWED, EPERM),
    ("setsockopt", (3, 17, 103), EPERM, ALLOWED, EPERM),
    ("setsockopt", (3, 270, 1), EPERM, EPERM, EPERM),
    ("setsockopt", (3, 1, 13), ALLOWED, ALLOWED, ALLOWED),  # LINGER
    ("setsockopt", (3, 1, 15), EPERM, ALLOWED, ALLOWED),  # REUSEPORT
    ("setsockopt", (3, 1, 16), EPERM, EPERM, ALLOWED),  # PASSCRED
    ("setsockopt", (3, 0, 26), EPERM, ALLOWED, EPERM),  # of IP, where 26 means nothing of the kind
    *(("setsockopt", (3, 1, name), EPERM, EPERM, EPERM) for name in NEVER_SET),
    ("getsockopt", (3, 1, 4), ALLOWED, ALLOWED, ALLOWED),  # ERROR
    ("getsockopt", (3, 1, 17), EPERM, EPERM, ALLOWED),  # PEERCRED
    ("getsockopt", (3, 1, 26), EPERM, EPERM, EPERM),  # GET_FILTER
    ("getsockopt", (3, 1, 77), EPERM, EPERM, EPERM),  # PEERPIDFD
    ("getsockopt", (3, 6, 11), EPERM, ALLOWED, EPERM),
    ("getsockopt", (3, 255, 1), EPERM, EPERM, EPERM),
    ("mmap", (0, 4096, 3, 0x22), ALLOWED, ALLOWED, ALLOWED),
    ("mmap", (0, 4096, 3, 0x40022), EPERM, EPERM, EPERM),  # HUGETLB
    ("memfd_create", (1, 3), ALLOWED, ALLOWED, ALLOWED),
    ("memfd_create", (1, 7), EPERM, EPERM, EPERM),  # HUGETLB
    ("memfd_create", (1, 0x54000004), EPERM, EPERM, EPERM),
    ("shmget", (1, 4096, 0o4600), EPERM, EPERM, EPERM),  # HUGETLB
    *(("madvise", (4096, 4096, advice), ALLOWED, ALLOWED, ALLOWED) for advice in (0, 4, 8, 14, 18, 21, 23, 102)),
    # MERGEABLE, UNMERGEABLE, REMOVE, COLD, HWPOISON, SOFT_OFFLINE
    *(("madvise", (4096, 4096, advice), EPERM, EPERM, EPERM) for advice in (9, 12, 13, 20, 100, 101)),
    ("mincore", (), EPERM, EPERM, EPERM),
    ("readahead", (), EPERM, EPERM, EPERM),
    ("fadvise64", (3, 0, 0, 3), ALLOWED, ALLOWED, ALLOWED),
    ("fadvise64", (3, 0, 0, 4), EPERM, EPERM, EPERM),  # DONTNEED
    ("preadv2", (3, 1, 1, 0, 0, 0), ALLOWED, ALLOWED, ALLOWED),
    ("pwritev2", (3, 1, 1, 0, 0, 2), ALLOWED, ALLOWED, ALLOWED),  # DSYNC
    ("preadv2", (3, 1, 1, 0, 0, 8), EPERM, EPERM, EPERM),  # NOWAIT
    ("preadv2", (3, 1, 1, 0, 0, 10), EPERM, EPERM, EPERM),
    ("pwritev2", (3, 1, 1, 0, 0, 0x80), EPERM, EPERM, EPERM),  # DONTCACHE
    ("fcntl", (3, 1032), ALLOWED, ALLOWED, ALLOWED),  # GETPIPE_SZ
    ("fcntl", (3, 1031, 1 << 20), EPERM, EPERM, EPERM),  # SETPIPE_SZ
    ("sysinfo", (), EPERM, EPERM, EPERM),
    ("clock_gettime", (3,), ALLOWED, ALLOWED, ALLOWED),
    ("clock_gettime", (~PID << 3 | 2,), EPERM, EPERM, ALLOWED),  # of a process
    ("clock_getres", (~PID << 3 | 6,), EPERM, EPERM, ALLOWED),  # of a thread
    ("clock_nanosleep", (~PID << 3 | 2,), EPERM, EPERM, ALLOWED),
    ("inotify_init1", (), ENOSYS, ENOSYS, ENOSYS),
    ("inotify_init", (), ENOSYS, ENOSYS, ENOSYS),
    ("inotify_add_watch", (), ENOSYS, ENOSYS, ENOSYS),
    ("kill", (PID, 9), ALLOWED, ALLOWED, ALLOWED),
    ("kill", (PID + 1, 9), EPERM, EPERM, ALLOWED),
    ("kill", (0, 9), EPERM, EPERM, ALLOWED),
    ("kill", (-1, 9), EPERM, EPERM, ALLOWED),
    ("tgkill", (PID, PID, 6), ALLOWED, ALLOWED, ALLOWED),
    ("tgkill", (1, 1, 6), EPERM, EPERM, ALLOWED),
    ("prctl", (15,), ALLOWED, ALLOWED, ALLOWED),
    ("prctl", (4, 0), EPERM, EPERM, EPERM),
    ("prctl", (1, 9), EPERM, EPERM, ALLOWED),
    ("prctl", (22, 2), EPERM, EPERM, EPERM),
    ("prlimit64", (0, 7), ALLOWED, ALLOWED, ALLOWED),
    ("prlimit64", (PID + 1, 7), EPERM, EPERM, EPERM),
    ("fcntl", (3, 4, 0o4000), ALLOWED, ALLOWED, ALLOWED),
    ("fcntl", (3, 8, 1), EPERM, EPERM, ALLOWED),
    ("ioctl", (3, 0x5421), ALLOWED, ALLOWED, ALLOWED),
    ("ioctl", (3, 0x5412), EPERM, EPERM, EPERM),
    ("ioctl", (3, 0x541C), EPERM, EPERM, EPERM),
    ("openat", (-100, 1, 0o101102, 0o600), ALLOWED, ALLOWED, ALLOWED),
    ("openat", (-100, 1, 0o1000, 0), EPERM, EPERM, EPERM),
    ("openat", (-100, 1, 0o102, 0o4755), EPERM, EPERM, EPERM),
    ("openat2", (), ENOSYS, ENOSYS, ENOSYS),
    ("utimensat", (3, 0, 0, 0), ALLOWED, ALLOWED, ALLOWED),
    ("utimensat", (-100, 1 << 32, 0, 0), EPERM, EPERM, ALLOWED),
    ("fchmod", (3, 0o600), ALLOWED, ALLOWED, ALLOWED),
    ("fchmod", (3, 0o2755), EPERM, EPERM, EPERM),
    ("fchmodat", (-100, 1, 0o755), EPERM, EPERM, ALLOWED),
    ("fchmodat", (-100, 1, 0o4755), EPERM, EPERM, EPERM),
    ("mknodat", (-100, 1, 0o010600), EPERM, EPERM, ALLOWED),
    ("mknodat", (-100, 1, 0o020600), EPERM, EPERM, EPERM),
    ("mknodat", (-100, 1, 0o060600), EPERM, EPERM, EPERM),
    ("mknodat", (-100, 1, 0o104755), EPERM, EPERM, EPERM),
    ("shmget", (), EPERM, EPERM, ALLOWED),
    ("getxattr", (), ENOTSUP, ENOTSUP, ENOTSUP),
]


@pytest.mark.parametrize("machine", ARCHITECTURES)
@pytest.mark.parametrize("profile", PROFILES)
def test_policy_answers_every_call_as_the_table_says(machine: str, profile: str) -> None:
    code = policy(machine, profile).code_for(PID)
    for name, arguments, *expected in TABLE:
        number = syscalls.number(name, machine)
        if number is not None:
            result = run(code, ARCHITECTURES[machine], number, arguments)
            assert result == expected[PROFILES.index(profile)], (name, arguments)


@pytest.mark.parametrize("machine", ARCHITECTURES)
@pytest.mark.parametrize("profile", PROFILES)
def test_without_a_root_of_its_own_no_descriptor_sets_modes_or_times(machine: str, profile: str) -> None:
    code = policy(machine, profile, rooted=False).code_for(PID)
    for name, arguments in (("fchmod", (3, 0o600)), ("utimensat", (3, 0, 0, 0)), ("utimensat", (-100, 1, 0, 0))):
        assert run(code, ARCHITECTURES[machine], syscalls.number(name, machine) or 0, arguments) == EPERM
    assert run(code, ARCHITECTURES[machine], syscalls.number("ftruncate", machine) or 0, (3, 0)) == ALLOWED


def test_what_gets_a_program_out_is_in_no_profile() -> None:
    forbidden = {
        "x86_64": "101 155 161 165 166 167 169 175 246 248 249 250 272 298 304 308 310 311 313 317 321 322 323 425 428 "
        "429 430 435 438 440 442 444 447 135 103 159 227 164 170 172 173",
        "aarch64": "117 41 51 40 39 224 142 105 104 217 218 219 97 241 265 268 270 271 273 277 280 281 282 425 428 429 "
        "430 435 438 440 442 444 447 92 116 171 112 161",
    }
    for machine, numbers in forbidden.items():
        for profile in PROFILES:
            code = policy(machine, profile).code_for(PID)
            for number in map(int, numbers.split()):
                assert run(code, ARCHITECTURES[machine], number, ()) in (EPERM, ENOSYS), (machine, profile, number)


@pytest.mark.parametrize("machine", ARCHITECTURES)
@pytest.mark.parametrize("profile", PROFILES)
def test_what_no_rule_names_is_refused_and_what_is_younger_does_not_exist(machine: str, profile: str) -> None:
    code = policy(machine, profile).code_for(PID)
    named = {rule.number for rule in rules(profile, machine)}
    for number in range(600):
        result = run(code, ARCHITECTURES[machine], number, ())
        if number >= syscalls.UNKNOWN_FROM:
            assert result == errno.ENOSYS
        elif number not in named:
            assert result == errno.EPERM


def test_no_call_of_another_architecture_or_abi_is_allowed() -> None:
    for machine, other in itertools.permutations(ARCHITECTURES):
        code = policy(machine, "exec").code_for(PID)
        assert all(run(code, ARCHITECTURES[other], number, ()) == errno.EPERM for number in range(600))
        assert all(run(code, 0x40000003, number, ()) == errno.EPERM for number in range(600))  # i386
    code = policy("x86_64", "exec").code_for(PID)
    assert all(run(code, ARCHITECTURES["x86_64"], 0x40000000 | number, ()) == errno.EPERM for number in range(600))


def test_filter_fits_and_every_call_has_one_rule() -> None:
    for machine, profile in itertools.product(ARCHITECTURES, PROFILES):
        numbers = [rule.number for rule in rules(profile, machine)]
        assert len(numbers) == len(set(numbers))
        assert len(policy(machine, profile)) < INSTRUCTIONS_MAX / 4


def test_every_test_of_a_rule_must_hold() -> None:
    rule = Allow(
        7, (Condition(0, (1, 2)), Condition(1, (OWN_PID,)), Condition(2, (0x10,), 0xF0), Condition(3, (5,), whole=True))
    )
    code = assemble([rule, Refuse(8, 99)], default=1, unknown_from=100, unknown=38, machine="x86_64").code_for(PID)
    for first, second, third, fourth in itertools.product((1, 2, 3), (PID, 0), (0x1F, 0x2F), (5, 6, 1 << 32 | 5)):
        expected = 0 if first in (1, 2) and second == PID and third == 0x1F and fourth == 5 else 1
        assert run(code, ARCHITECTURES["x86_64"], 7, (first, second, third, fourth)) == expected
    either = Allow(7, (Condition(0, (1,)), Condition(1, (3, 4))), (Condition(0, (2, 5)), Condition(2, (6,))))
    code = assemble([either, Refuse(8, 99)], default=1, unknown_from=100, unknown=38, machine="x86_64").code_for(PID)
    for first, second, third in itertools.product((1, 2, 5, 6), (3, 4, 5), (6, 7)):
        expected = 0 if (first == 1 and second in (3, 4)) or (first in (2, 5) and third == 6) else 1
        assert run(code, ARCHITECTURES["x86_64"], 7, (first, second, third)) == expected
    assert run(code, ARCHITECTURES["x86_64"], 8, ()) == 99
    assert run(code, ARCHITECTURES["x86_64"], 9, ()) == 1
    assert run(code, ARCHITECTURES["x86_64"], 100, ()) == 38
