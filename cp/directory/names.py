"""How names and words are written in a topology file, and what is said of those that are not."""

import keyword
import re
from collections.abc import Collection
from typing import Final

from retinue.cp.directory.model import LOCAL_NAME_LIMIT, NAME_LIMIT
from retinue.cp.directory.table import Table, did_you_mean, quoted, shown

_NAME: Final = re.compile(rf"[A-Z][A-Z0-9]{{0,{NAME_LIMIT - 1}}}", re.ASCII)
_NAME_RULE: Final = f"1 to {NAME_LIMIT} characters, an upper-case letter and then upper-case letters and digits"
_LOCAL_NAME: Final = re.compile(rf"[a-z][a-z0-9_]{{0,{LOCAL_NAME_LIMIT - 1}}}", re.ASCII)
_LOCAL_NAME_RULE: Final = (
    f"1 to {LOCAL_NAME_LIMIT} characters, a lower-case letter and then lower-case letters, digits and _"
)


def check_name(table: Table, key: str, name: str, what: str) -> None:
    """Report at ``key`` that ``name`` is no name of ``what`` ("a machine"), if it is none."""
    if not _NAME.fullmatch(name):
        upper = name.upper()
        hint = f"did you mean {quoted(upper)}?" if _NAME.fullmatch(upper) else ""
        base, at, _ = name.partition("@")
        if at and _NAME.fullmatch(base):
            hint = f"instances = 2 under {base} makes {base}@1 and {base}@2"
        table.wrong(key, f"{quoted(name)} is no name of {what}: it has {_NAME_RULE}", hint)


def instance_of(name: str, names: Collection[str]) -> str:
    """The one of ``names`` of which ``name`` would be an instance, as ``SHOP@1`` would be of ``SHOP``; or nothing."""
    base, at, _ = name.partition("@")
    return base if at and base in names else ""


def check_local_name(table: Table, name: str, what: str) -> None:
    """Report that the key ``name`` is no name of ``what`` ("an edge"), if it is none."""
    if not _LOCAL_NAME.fullmatch(name):
        lower = name.lower().replace("-", "_")
        hint = f"did you mean {quoted(lower)}?" if _LOCAL_NAME.fullmatch(lower) else ""
        table.wrong(name, f"{quoted(name)} is no name of {what}: it has {_LOCAL_NAME_RULE}", hint)


def is_local_name(name: str) -> bool:
    """Whether this can be the name of an edge, a disk, a socket or a secret."""
    return _LOCAL_NAME.fullmatch(name) is not None


def is_module(name: str) -> bool:
    """Whether this is a dotted module name."""
    return all(part.isidentifier() and not keyword.iskeyword(part) for part in name.split("."))


def one_of(words: tuple[str, ...]) -> str:
    """``"a", "b" or "c"``."""
    return " or ".join(filter(None, (", ".join(f'"{word}"' for word in words[:-1]), f'"{words[-1]}"')))


def read_word(table: Table, key: str, words: tuple[str, ...]) -> str | None:
    """The value of ``key``, which is one of ``words``; None if it is not there or, once that is reported, another."""
    value = table.value(key, str, one_of(words))
    if value is None or value in words:
        return value
    hint = did_you_mean(value, words)
    table.wrong(key, f"{key} is {shown(value)}, expected {one_of(words)}", hint if hint.endswith("?") else "")
    return None
