"""What can go wrong inside a machine, cut by who is at fault.

========================  ==========================================================================
you (the program)         :class:`ProgramError`, :class:`NoSuchDisk`, :class:`NoSuchSecret`, :class:`BadDestination`,
                          :class:`WrongEvent`, :class:`LifespanFailed`
the topology              :class:`ConfigError`
the policy                :class:`EdgeNotDeclared` (an AccessDenied)
the other machine         :class:`ConnectRefused`
the world outside         :class:`OutsideFailed`
the client                :class:`ClientDisconnected`
the host                  a failed step of the boot order (an OSError)
========================  ==========================================================================
"""

from typing import Any, Final

import attrs

from retinue.pipes import AccessDenied, PathError

# Mistakes of one config that are told at once: as many as somebody reads.
MOST_TOLD: Final = 100


class ProgramError(Exception):
    """The program cannot be run as it is: it cannot be imported, or has no ``main``.

    ``text`` may hold a traceback.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        super().__init__(text)


@attrs.frozen
class ConfigMistake:
    """One thing wrong in a ``config`` table: where (keys from ``config`` inwards) and what."""

    keys: tuple[str | int, ...]
    text: str


class ConfigError(Exception):
    """The ``config`` table of the topology does not fit the program's ``Config`` class; ``mistakes`` holds them all."""

    def __init__(self, mistakes: tuple[ConfigMistake, ...]) -> None:
        self.mistakes = mistakes
        super().__init__("; ".join(f"config.{'.'.join(map(str, m.keys))}: {m.text}" for m in mistakes))


class EdgeNotDeclared(AccessDenied):
    """The topology gives this machine no edge of that name. The text holds the line that would allow it."""

    def __init__(self, machine: str, edge: str, declared: tuple[str, ...]) -> None:
        self.machine, self.edge, self.declared = machine, edge, declared
        known = f"it has {', '.join(declared)}" if declared else "it has none"
        super().__init__(
            f'{machine} has no edge "{edge}" ({known}); '
            f'to allow it, put  uses.{edge} = "MACHINE"  under [machines.{machine}]'
        )


class ConnectRefused(PathError):
    """The edge exists, but no path came of it.

    ``code`` is ``not-ready`` (only without waiting), ``broken`` (the machine will not come back by itself),
    ``not-listening``, ``stopping``, or what the other machine said; ``text`` is for people.
    """

    def __init__(self, edge: str, code: str, text: str = "") -> None:
        self.edge, self.code, self.text = edge, code, text
        super().__init__(f'no path for the edge "{edge}" ({code}){": " + text if text else ""}')


class BadDestination(PathError, ValueError):
    """What you passed is no host and port that one could go to. ``text`` says why."""

    def __init__(self, text: str) -> None:
        self.text = text
        super().__init__(text)


class OutsideFailed(PathError, OSError):
    """You may go there, but the world outside did not let you.

    ``code`` is ``unresolved`` (the name has no address), ``unreachable`` or ``timeout``; ``errno`` is the system's
    number, 0 when it has none for this.
    """

    def __init__(self, code: str, text: str, number: int = 0) -> None:
        self.code = code
        super().__init__(number, text)

    def __str__(self) -> str:
        return str(self.strerror)


class NoSuchDisk(LookupError):
    """The topology gives this machine no disk of that name."""

    def __init__(self, machine: str, disk: str, declared: tuple[str, ...]) -> None:
        self.machine, self.disk, self.declared = machine, disk, declared
        known = f"it has {', '.join(declared)}" if declared else "it has none"
        super().__init__(
            f'{machine} has no disk "{disk}" ({known}); '
            f"to give it one, put  disks.{disk} = {{}}  under [machines.{machine}]"
        )


class NoSuchSecret(LookupError):
    """The topology gives this machine no secret of that name."""

    def __init__(self, machine: str, secret: str, declared: tuple[str, ...]) -> None:
        self.machine, self.secret, self.declared = machine, secret, declared
        known = f"it has {', '.join(declared)}" if declared else "it has none"
        super().__init__(
            f'{machine} has no secret "{secret}" ({known}); '
            f'to give it one, put  secrets.{secret} = {{ file = "FILE" }}  under [machines.{machine}]'
        )


class LifespanFailed(Exception):
    """The application reported that it cannot start (``lifespan.startup.failed``). ``text`` is its own message."""

    def __init__(self, text: str) -> None:
        self.text = text
        super().__init__(f"the application's startup failed: {text or '(it does not say why)'}")


class ClientDisconnected(OSError):
    """What an application's send() raises when nobody is there any more to get the response."""


class WrongEvent(RuntimeError):
    """The application sent an ASGI event that does not fit here: it has a bug, and the text says which."""


def mistakes_to_wire(error: ConfigError) -> list[dict[str, Any]]:
    """The mistakes as a message can carry them."""
    return [{"keys": list(mistake.keys), "text": mistake.text[:1000]} for mistake in error.mistakes[:MOST_TOLD]]
