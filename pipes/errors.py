"""What can go wrong on a path, cut by who is at fault.

=====================  ==========================================================
you                    :class:`PathClosed`, :class:`WrongMode`, :class:`LimitExceeded`
the peer               :class:`Rejected`, :class:`ProtocolViolation`
the policy             :class:`AccessDenied`
the world              :class:`PathSevered` (a crash, the control program, the other end)
=====================  ==========================================================
"""

from typing import Any


class PathError(Exception):
    """Root of everything a path raises."""


class PathClosed(PathError):
    """You used a path after this end had closed it."""

    def __init__(self, name: str = "") -> None:
        self.name = name
        super().__init__(f"the path {name or '(unnamed)'} was closed at this end")


class WrongMode(PathError):
    """You used a message verb on a path that is a byte stream, or the other way round."""


class LimitExceeded(PathError, ValueError):
    """You passed something larger than the wire carries.

    ``what`` names the limit, ``value`` is what you passed, ``limit`` what is allowed, in the unit that ``what`` says.
    """

    def __init__(self, what: str, value: int, limit: int) -> None:
        self.what, self.value, self.limit = what, value, limit
        super().__init__(f"{what} is {value}, the limit is {limit}")


class PathSevered(PathError):
    """The path has ended, and not by this end: the peer severed it, the peer died, or the control program cut it.

    ``code`` is a word for programs, ``text`` a sentence for people. Codes that pipes itself uses:
    ``closed`` (the other end closed in order), ``lost`` (its descriptor is gone without a word),
    ``violation`` (one end broke the protocol).
    """

    def __init__(self, code: str, text: str = "", name: str = "") -> None:
        self.code, self.text, self.name = code, text, name
        super().__init__(f"the path {name or '(unnamed)'} was severed ({code}){': ' + text if text else ''}")


class ProtocolViolation(PathError):
    """The peer sent what the protocol does not allow. The path is severed; the reader lives on.

    ``rule`` says which rule was broken, in words that can go into a record.
    """

    def __init__(self, rule: str) -> None:
        self.rule = rule
        super().__init__(rule)


class Rejected(PathError):
    """The peer refused one message; the path goes on.

    Raise it in a handler to refuse; catch it around a call to learn of a refusal. ``code`` is a word for programs,
    ``text`` a sentence for people, ``detail`` any msgpack value or None.
    """

    def __init__(self, code: str, text: str = "", detail: Any = None) -> None:
        self.code, self.text, self.detail = code, text, detail
        super().__init__(f"{code}: {text}" if text else code)


class AccessDenied(Rejected):
    """Refused by policy. ``code`` is always ``denied``; the text names the rule and what would allow it."""

    def __init__(self, text: str, detail: Any = None) -> None:
        super().__init__("denied", text, detail)


def fresh(error: PathSevered | PathClosed) -> PathError:
    """A new exception of the same content: one instance raised in several tasks would mix their tracebacks."""
    if isinstance(error, PathSevered):
        return PathSevered(error.code, error.text, error.name)
    return PathClosed(error.name)


def rejection(code: str, text: str, detail: Any) -> Rejected:
    """The exception for a refusal that came over the wire: AccessDenied for the code ``denied``, else Rejected."""
    return AccessDenied(text, detail) if code == "denied" else Rejected(code, text, detail)
