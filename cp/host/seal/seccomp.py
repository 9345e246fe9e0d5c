"""seccomp: a filter program for system calls, assembled here and loaded in the machine. Standard library only.

The program is classic BPF (linux/filter.h) over struct seccomp_data: the number, the architecture, and six arguments of
64 bits. It is assembled once in the saved system; a machine only writes its own pid into it and loads it.
"""

import ctypes
import struct
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from retinue.cp.host import libc
from retinue.cp.host.errors import SealFailed

__all__ = ["OWN_PID", "Allow", "Condition", "Filter", "Refuse", "Rule", "assemble"]

# linux/bpf_common.h, linux/seccomp.h, linux/audit.h
_LOAD, _JUMP, _JUMP_EQUAL, _JUMP_AT_LEAST, _JUMP_SET, _AND, _RETURN = 0x20, 0x05, 0x15, 0x35, 0x45, 0x54, 0x06
_ALLOW = 0x7FFF0000
_ERRNO = 0x00050000
_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32_BIT = 0x40000000
_SYS_SECCOMP = {"x86_64": 317, "aarch64": 277}
_SET_MODE_FILTER = 1

_INSTRUCTION = struct.Struct("<HBBI")
INSTRUCTIONS_MAX = 4096  # BPF_MAXINSNS
_ALL_BITS = 0xFFFFFFFF

_TRIED_IN_TURN = 4
"""Rules at the end of a search: fewer would make the program longer and no search shorter."""

OWN_PID = -1
"""As the value of a Condition: the pid of the machine, as it sees itself."""


class Condition(NamedTuple):
    """A condition on the low 32 bits of an argument: ``argument & mask`` is one of ``values``."""

    argument: int
    values: tuple[int, ...]
    mask: int = _ALL_BITS
    whole: bool = False
    """True: the high 32 bits must be zero (a pointer, or a count)."""


class Allow(NamedTuple):
    """Allow a call if every one of the conditions holds."""

    number: int
    conditions: tuple[Condition, ...] = ()
    otherwise: tuple[Condition, ...] = ()
    """Or if every one of these holds; none at all means that there is no second way."""


class Refuse(NamedTuple):
    """Refuse a call with an errno other than the filter's default."""

    number: int
    errno: int


Rule = Allow | Refuse


class Filter:
    """An assembled program."""

    def __init__(self, code: bytes, own_pid_at: Sequence[int]) -> None:
        self._code = code
        self._own_pid_at = tuple(own_pid_at)

    def __len__(self) -> int:
        """Number of instructions."""
        return len(self._code) // _INSTRUCTION.size

    def code_for(self, pid: int) -> bytes:
        """The program for a machine that sees itself as ``pid``."""
        code = bytearray(self._code)
        for offset in self._own_pid_at:
            struct.pack_into("<I", code, offset, pid)
        return bytes(code)

    def load(self, pid: int) -> None:
        """Put this process (all of it: it has one thread) under the filter, for good. Needs no_new_privs.

        :raises SealFailed: the kernel has no seccomp filters.
        """
        code = ctypes.create_string_buffer(self.code_for(pid), len(self._code))
        program = struct.pack("@HP", len(self), ctypes.addressof(code))
        buffer = ctypes.create_string_buffer(program, len(program))
        try:
            libc.syscall(_SYS_SECCOMP[libc.MACHINE], _SET_MODE_FILTER, 0, ctypes.addressof(buffer))
        except OSError as error:
            hint = "needs a kernel with CONFIG_SECCOMP_FILTER"
            raise SealFailed("calls", "seccomp filter", error.errno or 0, hint) from error


def assemble(
    rules: Iterable[Rule], *, default: int, unknown_from: int, unknown: int, machine: str = libc.MACHINE
) -> Filter:
    """Assemble a filter.

    :param default: errno of a call that no rule names.
    :param unknown_from: call numbers from here on did not exist when the policy was written.
    :param unknown: errno of those: ENOSYS lets a newer C library fall back on an older call.
    """
    code: list[tuple[int, int, int, int]] = []
    own_pid_at: list[int] = []

    def emit(operation: int, constant: int, if_true: int = 0, if_false: int = 0) -> None:
        code.append((operation, if_true, if_false, constant))

    def emit_rule(rule: Rule) -> None:
        if isinstance(rule, Refuse):
            emit(_JUMP_EQUAL, rule.number, 0, 1)
            emit(_RETURN, _ERRNO | rule.errno)
            return
        if not rule.conditions:
            emit(_JUMP_EQUAL, rule.number, 0, 1)
            emit(_RETURN, _ALLOW)
            return
        # number? else over all this; conditions, each jumping over the allowance when it fails; allow; the same for
        # the other conditions; refuse
        ways = [way for way in (rule.conditions, rule.otherwise) if way]
        emit(_JUMP_EQUAL, rule.number, 0, sum(map(_way_size, ways)) + 1)
        for way in ways:
            emit_way(way)
        emit(_RETURN, _ERRNO | default)

    def emit_way(conditions: Sequence[Condition]) -> None:
        end = len(code) + _way_size(conditions)
        for condition in conditions:
            offset = 16 + 8 * condition.argument
            if condition.whole:
                emit(_LOAD, offset + 4)
                emit(_JUMP_EQUAL, 0, 0, end - (len(code) + 1))
            emit(_LOAD, offset)
            if condition.mask != _ALL_BITS:
                emit(_AND, condition.mask)
            for left in range(len(condition.values) - 1, -1, -1):
                value = condition.values[-1 - left]
                if value == OWN_PID:
                    own_pid_at.append(len(code) * _INSTRUCTION.size + 4)
                    value = 0
                emit(_JUMP_EQUAL, value, left, 0 if left else end - (len(code) + 1))
        emit(_RETURN, _ALLOW)

    def emit_search(rules: Sequence[Rule]) -> None:
        """A binary search: the kernel runs the filter for every call there is when a machine loads it."""
        if len(rules) <= _TRIED_IN_TURN:
            for rule in rules:
                emit_rule(rule)
            emit(_RETURN, _ERRNO | default)
            return
        middle = len(rules) // 2
        emit(_JUMP_AT_LEAST, rules[middle].number, 0, 1)
        jump = len(code)
        emit(_JUMP, 0)
        emit_search(rules[:middle])
        code[jump] = (_JUMP, 0, 0, len(code) - jump - 1)
        emit_search(rules[middle:])

    emit(_LOAD, 4)
    emit(_JUMP_EQUAL, _ARCHITECTURES[machine], 1, 0)
    emit(_RETURN, _ERRNO | default)
    emit(_LOAD, 0)
    if machine == "x86_64":
        # The x32 calls have the same architecture and bit 30 set; none is allowed.
        emit(_JUMP_SET, _X32_BIT, 0, 1)
        emit(_RETURN, _ERRNO | default)
    emit(_JUMP_AT_LEAST, unknown_from, 0, 1)
    emit(_RETURN, _ERRNO | unknown)
    emit_search(sorted(rules, key=lambda rule: rule.number))
    if len(code) > INSTRUCTIONS_MAX:
        raise ValueError(f"{len(code)} instructions, the limit is {INSTRUCTIONS_MAX}")
    # Jumps are eight bits wide: struct.pack below refuses a rule with too many conditions.
    return Filter(b"".join(_INSTRUCTION.pack(*instruction) for instruction in code), own_pid_at)


def _way_size(conditions: Iterable[Condition]) -> int:
    """Instructions of conditions and of what is returned if they hold."""
    return sum(map(_size, conditions)) + 1


def _size(condition: Condition) -> int:
    """Instructions of one condition."""
    return 2 * condition.whole + 1 + (condition.mask != _ALL_BITS) + len(condition.values)
