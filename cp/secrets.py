"""The secrets of a running system: each known to the control program and to the machine it belongs to, to nobody else.

Values come from files, which the control program reads when it starts, and from variables of whoever starts the
system: the command puts those into a memfd (:func:`hand_over`), which the nucleus holds without looking and the
control program reads (:func:`take_over`). So no value is ever in an argument list, in the environment of a process of
the system, or on a disk. What a machine says of a secret is taken out of records, taps and certificates again: every
exact occurrence, and no other form of it.
"""

import fcntl
import os
import re
from collections.abc import Mapping
from typing import Any, Final

__all__ = ["NO_SECRETS", "Secrets", "hand_over", "take_over"]

# Whoever reads the memfd later reads what was written.
_SEALS: Final = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
# Bytes of a line of a secret that is looked for by itself: text comes to the log line by line.
_LINE: Final = 16


def hand_over(variables: Mapping[str, bytes]) -> int:
    """A descriptor with these variables, as in ``/proc/PID/environ``: neither names nor values have a NUL. OSError."""
    descriptor = os.memfd_create("secrets", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with open(descriptor, "wb", closefd=False) as stream:
            for name, value in variables.items():
                stream.write(name.encode() + b"=" + value + b"\0")
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def take_over(descriptor: int) -> dict[str, bytes]:
    """The variables in such a descriptor, which is closed; its other holders can read it again."""
    try:
        contents = os.pread(descriptor, os.fstat(descriptor).st_size, 0)
    finally:
        os.close(descriptor)
    pairs = (entry.partition(b"=") for entry in contents.split(b"\0") if entry)
    return {name.decode(): value for name, _, value in pairs}


class Secrets:
    """The value of every secret, by machine and name; and what hides them."""

    def __init__(self, values: Mapping[str, Mapping[str, bytes]]) -> None:
        self._values: dict[str, dict[str, bytes]] = {}
        self._found: dict[bytes, str] = {}
        self.declare(values)

    def declare(self, values: Mapping[str, Mapping[str, bytes]]) -> None:
        """These are the secrets from now on. Those that there were are hidden further on: somebody may still tell."""
        self._values = {machine: dict(secrets) for machine, secrets in values.items()}
        found = self._found
        for secrets in self._values.values():
            for name, value in secrets.items():
                lines = [line for line in value.splitlines() if len(line) >= _LINE]
                for needle in (value, *lines):
                    found.setdefault(needle, f"[secret {name}]")
        # The longest first: one may begin with another.
        needles = sorted(found, key=len, reverse=True)
        self._bytes = {needle: found[needle].encode() for needle in needles}
        # Bytes that are no UTF-8 become text in the log with backslashes.
        self._text = {needle.decode(errors="backslashreplace"): found[needle] for needle in needles}
        self._bytes_pattern = re.compile(b"|".join(map(re.escape, self._bytes)))
        self._text_pattern = re.compile("|".join(map(re.escape, self._text)))

    @property
    def values(self) -> dict[str, dict[str, bytes]]:
        """All of them, for the next control program."""
        return self._values

    def of(self, machine: str) -> dict[str, bytes]:
        """A machine's own, by their names."""
        return dict(self._values.get(machine, {}))

    def hide(self, text: str) -> str:
        """A text in which ``[secret NAME]`` stands for every value of a secret."""
        return self._hide_text(text)[0]

    def _hide_text(self, text: str) -> tuple[str, int]:
        # To look for each by itself is many times faster than the pattern, and mostly there is none.
        if any(needle in text for needle in self._text):
            return self._text_pattern.subn(lambda match: self._text[match[0]], text)
        return text, 0

    def _hide_bytes(self, data: bytes) -> tuple[bytes, int]:
        if any(needle in data for needle in self._bytes):
            return self._bytes_pattern.subn(lambda match: self._bytes[match[0]], data)
        return data, 0

    def _hide_one(self, value: Any) -> tuple[Any, int]:
        if type(value) is str:
            return self._hide_text(value)
        return self._hide_bytes(value) if type(value) is bytes else (value, 0)

    def hide_in(self, value: Any) -> tuple[Any, int]:
        """The same for a decoded body and all in it, and how many there were. Maps and lists are changed in place."""
        if not self._bytes:
            return value, 0
        root = [value]
        pending: list[Any] = [root]
        found = 0
        while pending:
            each = pending.pop()
            if type(each) is dict and any(self._hide_one(key)[1] for key in each):
                entries = [(*self._hide_one(key), inner) for key, inner in each.items()]
                found += sum(count for _, count, _ in entries)
                each.clear()
                each.update((key, inner) for key, _, inner in entries)
            for key, inner in list(each.items() if type(each) is dict else enumerate(each)):
                if type(inner) is dict or type(inner) is list:
                    pending.append(inner)
                    continue
                hidden, count = self._hide_one(inner)
                if count:
                    each[key] = hidden
                    found += count
        return root[0], found


NO_SECRETS: Final = Secrets({})
