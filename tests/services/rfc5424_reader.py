"""The other end of RFC 5424, for tests: a strict reader of messages and of streams of them, by the grammar alone."""

import re
from typing import Final

import attrs

_NAME: Final = rb"[!#-<>-\\^-~]{1,32}"
_VALUE: Final = rb'(?:[^"\\\]]|\\["\\\]])*'
_ELEMENT: Final = rb"\[(?P<id>" + _NAME + rb")(?P<params>(?: " + _NAME + rb'="' + _VALUE + rb'")*)\]'
_PARAM: Final = re.compile(rb" (" + _NAME + rb')="(' + _VALUE + rb')"', re.DOTALL)
_ANY_ELEMENT: Final = re.compile(_ELEMENT, re.DOTALL)
_MESSAGE: Final = re.compile(
    rb"<(?P<pri>0|[1-9][0-9]{0,2})>1"
    rb" (?P<time>-|[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{1,6}Z)"
    rb" (?P<host>[!-~]{1,255}) (?P<app>[!-~]{1,48}) (?P<proc>[!-~]{1,128}) (?P<msgid>[!-~]{1,32})"
    rb" (?P<data>-|(?:" + _ELEMENT.replace(b"?P<id>", b"?:").replace(b"?P<params>", b"?:") + rb")+)"
    rb"(?: (?P<text>.*))?",
    re.DOTALL,
)
_BOM: Final = b"\xef\xbb\xbf"


@attrs.frozen
class Read:
    """A message. ``data``: id of an element -> its parameters, in order, unescaped."""

    facility: int
    severity: int
    time: str
    host: str
    app: str
    proc: str
    msgid: str
    data: dict[str, list[tuple[str, str]]]
    text: str

    @property
    def about(self) -> dict[str, str]:
        """The parameters of the first element."""
        return dict(next(iter(self.data.values())))


def read(message: bytes) -> Read:
    """A message by the grammar. ValueError for anything else."""
    found = _MESSAGE.fullmatch(message)
    if found is None:
        raise ValueError(f"not a message of RFC 5424: {message!r}")
    data: dict[str, list[tuple[str, str]]] = {}
    for element in _ANY_ELEMENT.finditer(found["data"]):
        name = element["id"].decode()
        if name in data:
            raise ValueError(f"the element {name} comes twice")
        data[name] = [(key.decode(), _unescaped(value.decode())) for key, value in _PARAM.findall(element["params"])]
    text = found["text"] or b""
    if not text.startswith(_BOM) and not text.isascii():
        raise ValueError("UTF-8 without its mark")
    pri = int(found["pri"])
    words = {name: found[name].decode() for name in ("time", "host", "app", "proc", "msgid")}
    return Read(pri >> 3, pri & 7, **words, data=data, text=text.removeprefix(_BOM).decode())


def _unescaped(value: str) -> str:
    return re.sub(r'\\(["\\\]])', r"\1", value)


class Frames:
    """Takes the bytes of a stream as they come and gives the messages in it (RFC 6587, octet counting)."""

    def __init__(self) -> None:
        self.rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """The messages that are complete now."""
        self.rest += data
        messages = []
        while (frame := re.match(rb"([1-9][0-9]{0,8}) ", self.rest)) is not None:
            end = frame.end() + int(frame[1])
            if len(self.rest) < end:
                break
            messages.append(self.rest[frame.end() : end])
            self.rest = self.rest[end:]
        else:
            if len(self.rest) > 9:
                raise ValueError(f"no frame: {self.rest[:40]!r}")
        return messages
