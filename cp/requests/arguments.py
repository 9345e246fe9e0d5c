"""The arguments of a request, and the names in them."""

from collections.abc import Iterable
from typing import Any

from retinue.pipes import Rejected


def take(untrusted: dict[str, Any], expected: dict[str, tuple[type, Any]]) -> list[Any]:
    """The arguments in the order of ``expected`` (name -> type and default); None passes for every type."""
    for name in untrusted:
        if name not in expected:
            raise Rejected("bad-arguments", f"unknown argument {str(name)[:64]!r}", sorted(expected))
    values = []
    for name, (kind, default) in expected.items():
        value = untrusted.get(name, default)
        if value is not None and type(value) is not kind:
            raise Rejected("bad-arguments", f"{name} must be {kind.__name__}")
        values.append(default if value is None else value)
    return values


def known(machine: str | None, names: Iterable[str]) -> None:
    """Rejected ``unknown-machine`` unless it is one of the names; None passes."""
    if machine is not None and machine not in (listed := list(names)):
        raise Rejected("unknown-machine", f"there is no machine {machine[:64]!r}", listed)
