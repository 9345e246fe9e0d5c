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
        elif operation == 0x06:
            return ALLOWED if constant == 0x7FFF0000 else constant & 0xFFFF
        else:
            holds = {0x15: accumulator == constant, 0x35: accumulator >= constant, 0x45: bool(accumulator & constant)}
            position += if_true if holds[operation] else if_false


def policy(machine: str, *, network: bool) -> Filter:
    return assemble(
        rules(network=network, machine=machine),
        default=errno.EPERM,
        unknown_from=syscalls.UNKNOWN_FROM,
        unknown=errno.ENOSYS,
        machine=machine,
    )


NEWUSER, THREAD, STREAM, DGRAM, SEQPACKET, CLOEXEC = 0x10000000, 0x3D0F00, 1, 2, 5, 0o2000000

TABLE = [
    # call, arguments, sealed, network
    ("read", (0,), ALLOWED, ALLOWED),
    ("mmap", (0, 4096), ALLOWED, ALLOWED),
    ("futex", (), ALLOWED, ALLOWED),
    ("clone", (THREAD,), ALLOWED, ALLOWED),
    ("clone", (17,), errno.EPERM, errno.EPERM),
    ("clone", (THREAD | NEWUSER,), errno.EPERM, errno.EPERM),
    ("clone3", (), errno.ENOSYS, errno.ENOSYS),
    ("socketpair", (1, STREAM | CLOEXEC), ALLOWED, ALLOWED),
    ("socketpair", (1, SEQPACKET), ALLOWED, ALLOWED),
    ("socketpair", (1, DGRAM), errno.EPERM, errno.EPERM),
    ("socketpair", (1, 3), errno.EPERM, errno.EPERM),
    ("socketpair", (2, STREAM), errno.EPERM, errno.EPERM),
    ("socket", (2, STREAM | CLOEXEC, 0), errno.EPERM, ALLOWED),
    ("socket", (10, STREAM, 6), errno.EPERM, ALLOWED),
    ("socket", (2, STREAM, 262), errno.EPERM, errno.EPERM),
    ("socket", (2, DGRAM, 0), errno.EPERM, errno.EPERM),
    ("socket", (1, STREAM, 0), errno.EPERM, errno.EPERM),
    ("socket", (16, 3, 0), errno.EPERM, errno.EPERM),
    ("bind", (), errno.EPERM, ALLOWED),
    ("connect", (), errno.EPERM, ALLOWED),
    ("setsockopt", (3, 1, 7), ALLOWED, ALLOWED),
    ("setsockopt", (3, 6, 1), errno.EPERM, ALLOWED),
    ("setsockopt", (3, 270, 1), errno.EPERM, errno.EPERM),
    ("kill", (PID, 9), ALLOWED, ALLOWED),
    ("kill", (PID + 1, 9), errno.EPERM, errno.EPERM),
    ("kill", (0, 9), errno.EPERM, errno.EPERM),
    ("kill", (-1, 9), errno.EPERM, errno.EPERM),
    ("tgkill", (PID, PID, 6), ALLOWED, ALLOWED),
    ("tgkill", (1, 1, 6), errno.EPERM, errno.EPERM),
    ("prctl", (15,), ALLOWED, ALLOWED),
    ("prctl", (4, 0), errno.EPERM, errno.EPERM),
    ("prlimit64", (0, 7), ALLOWED, ALLOWED),
    ("prlimit64", (PID + 1, 7), errno.EPERM, errno.EPERM),
    ("fcntl", (3, 4, 0o4000), ALLOWED, ALLOWED),
    ("fcntl", (3, 8, 1), errno.EPERM, errno.EPERM),
    ("ioctl", (3, 0x5421), ALLOWED, ALLOWED),
    ("ioctl", (3, 0x5412), errno.EPERM, errno.EPERM),
    ("openat", (-100, 1, 0o101102, 0o600), ALLOWED, ALLOWED),
    ("openat", (-100, 1, 0o1000, 0), errno.EPERM, errno.EPERM),
    ("openat", (-100, 1, 0o102, 0o4755), errno.EPERM, errno.EPERM),
    ("openat2", (), errno.ENOSYS, errno.ENOSYS),
    ("utimensat", (3, 0, 0, 0), ALLOWED, ALLOWED),
    ("utimensat", (-100, 1 << 32, 0, 0), errno.EPERM, errno.EPERM),
    ("fchmod", (3, 0o600), ALLOWED, ALLOWED),
    ("fchmod", (3, 0o2755), errno.EPERM, errno.EPERM),
    ("getxattr", (), errno.ENOTSUP, errno.ENOTSUP),
]


@pytest.mark.parametrize("machine", ARCHITECTURES)
@pytest.mark.parametrize("network", [False, True], ids=["sealed", "network"])
def test_policy_answers_every_call_as_the_table_says(machine: str, network: bool) -> None:
    code = policy(machine, network=network).code_for(PID)
    for name, arguments, sealed, with_network in TABLE:
        number = syscalls.number(name, machine)
        assert number is not None
        expected = with_network if network else sealed
        assert run(code, ARCHITECTURES[machine], number, arguments) == expected, (name, arguments)


@pytest.mark.parametrize("machine", ARCHITECTURES)
def test_what_no_rule_names_is_refused_and_what_is_younger_does_not_exist(machine: str) -> None:
    code = policy(machine, network=True).code_for(PID)
    named = {rule.number for rule in rules(network=True, machine=machine)}
    for number in range(600):
        result = run(code, ARCHITECTURES[machine], number, ())
        if number >= syscalls.UNKNOWN_FROM:
            assert result == errno.ENOSYS
        elif number not in named:
            assert result == errno.EPERM


def test_no_call_of_another_architecture_or_abi_is_allowed() -> None:
    for machine, other in itertools.permutations(ARCHITECTURES):
        code = policy(machine, network=True).code_for(PID)
        assert all(run(code, ARCHITECTURES[other], number, ()) == errno.EPERM for number in range(600))
        assert all(run(code, 0x40000003, number, ()) == errno.EPERM for number in range(600))  # i386
    code = policy("x86_64", network=True).code_for(PID)
    assert all(run(code, ARCHITECTURES["x86_64"], 0x40000000 | number, ()) == errno.EPERM for number in range(600))


def test_filter_fits_and_every_call_has_one_rule() -> None:
    for machine in ARCHITECTURES:
        numbers = [rule.number for rule in rules(network=True, machine=machine)]
        assert len(numbers) == len(set(numbers))
        assert len(policy(machine, network=True)) < INSTRUCTIONS_MAX / 4


def test_every_test_of_a_rule_must_hold() -> None:
    rule = Allow(
        7, (Condition(0, (1, 2)), Condition(1, (OWN_PID,)), Condition(2, (0x10,), 0xF0), Condition(3, (5,), whole=True))
    )
    code = assemble([rule, Refuse(8, 99)], default=1, unknown_from=100, unknown=38, machine="x86_64").code_for(PID)
    for first, second, third, fourth in itertools.product((1, 2, 3), (PID, 0), (0x1F, 0x2F), (5, 6, 1 << 32 | 5)):
        expected = 0 if first in (1, 2) and second == PID and third == 0x1F and fourth == 5 else 1
        assert run(code, ARCHITECTURES["x86_64"], 7, (first, second, third, fourth)) == expected
    assert run(code, ARCHITECTURES["x86_64"], 8, ()) == 99
    assert run(code, ARCHITECTURES["x86_64"], 9, ()) == 1
    assert run(code, ARCHITECTURES["x86_64"], 100, ()) == 38
