"""A record as a message of RFC 5424, and how a stream carries many of them (RFC 6587).

::

    <30>1 2026-11-21T09:56:53.265000Z SHOP PRICES 2 - [retinue@32473 run="..." seq="8" logger="prices"]
    [fields@32473 article="tea"] tea costs 1000 EUR

(in one line). HOSTNAME is the site's word for the system, APP-NAME the machine, PROCID its generation, MSGID nothing.
No control character of a machine gets out: a line feed is ``#012``, as rsyslog writes it, so one record is one line.
"""

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final, Protocol

import attrs

# RFC 5424, 6.2.1.
_NAMED: Final = ("kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv", "ftp")
_LOCAL: Final = 16
FACILITIES: Final = {name: code for code, name in enumerate(_NAMED)} | {f"local{n}": _LOCAL + n for n in range(8)}
SEVERITIES: Final = ("emergency", "alert", "critical", "error", "warning", "notice", "info", "debug")
# The number that RFC 5612 keeps for examples, for those who have none of their own.
ENTERPRISE: Final = 32473
# The shortest limit that has room for all but the fields and the message (RFC 5424, 6.1: 480 is what everybody takes).
SHORTEST: Final = 1024

NIL: Final = "-"
_BOM: Final = b"\xef\xbb\xbf"
# Bytes of the values that are ours; a logger's name may have more.
_LOGGER_ROOM: Final = 256
_TEXT_ROOM: Final = 64
# What is told of a record that was cut: a parameter of the first element.
_CUT_ROOM: Final = len(b' cut="fields message"')

# 6.2 and 6.3: printable ASCII; a name of structured data has none of = ] ".
_NOT_PRINTABLE: Final = re.compile(r"[^!-~]")
_NOT_IN_NAME: Final = re.compile(r'[^!-~]|[="\]]')
# C0, DEL, C1, and what Unicode has for line ends, in octal by octet.
_CONTROLS: Final = {
    code: "".join(f"#{octet:03o}" for octet in chr(code).encode())
    for code in (*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029)
}
# 6.3.3: these three, and no others, behind a backslash.
_IN_VALUE: Final = _CONTROLS | {ord(each): f"\\{each}" for each in '"\\]'}


class Record(Protocol):
    """What a message tells: a row of the store is one."""

    @property
    def run(self) -> str: ...
    @property
    def seq(self) -> int: ...
    @property
    def time(self) -> float: ...
    @property
    def machine(self) -> str: ...
    @property
    def generation(self) -> int: ...
    @property
    def severity(self) -> int: ...
    @property
    def logger(self) -> str: ...
    @property
    def message(self) -> str: ...
    @property
    def fields(self) -> Mapping[str, Any]: ...


@attrs.frozen
class Formatter:
    """Makes messages of at most ``longest`` bytes; a longer one loses fields and the end of its text, and says so."""

    facility: int
    hostname: str
    enterprise: int
    longest: int

    def format(self, record: Record) -> bytes:
        """One message, whatever is in the record."""
        fields = dict(record.fields)
        severity = min(max(record.severity, 0), 7)
        about = {"run": record.run, "seq": str(record.seq), "logger": record.logger}
        if "trace" in fields:
            about["trace"] = _as_text(fields.pop("trace"))
        head = (
            f"<{self.facility * 8 + severity}>1 {_timestamp(record.time)} {_word(self.hostname, 255)} "
            f"{_word(record.machine, 48)} {record.generation} {NIL} [retinue@{self.enterprise}"
        ).encode()
        for name, value in about.items():
            head += _parameter(name, value, _LOGGER_ROOM if name == "logger" else _TEXT_ROOM)[0]

        message = record.message[: self.longest].translate(_CONTROLS)
        text = message.encode("utf-8", "replace")
        if text and not message.isascii():
            text = _BOM + text
        # The brackets and the space between the parts; a half for the fields, and what the text leaves.
        room = self.longest - len(head) - len("] ") - _CUT_ROOM
        element, cut_fields = self._fields(fields, max(room // 2, room - len(text)))
        room -= len(element)
        cut_text = len(text) > room or len(record.message) > self.longest
        cut = [name for name, is_cut in (("fields", cut_fields), ("message", cut_text)) if is_cut]
        end = f' cut="{" ".join(cut)}"]'.encode() if cut else b"]"
        text = _shortened(text, room)
        return head + end + element + (b" " + text if text else b"")

    def _fields(self, fields: Mapping[str, Any], room: int) -> tuple[bytes, bool]:
        """The element of a record's own fields, in at most ``room`` bytes, and whether some of them found none."""
        if not fields:
            return b"", False
        element = f"[fields@{self.enterprise}".encode()
        room -= len(element) + len("]")
        cut = False
        found = b""
        for key, value in fields.items():
            parameter, shortened = _parameter(_name(key), _as_text(value), max(room - len(found), 0))
            found += parameter
            if shortened:
                cut = True
                break
        return (element + found + b"]" if found else b""), cut


def count_octets(message: bytes) -> bytes:
    """A message as it goes into a stream of them (RFC 6587, 3.4.1)."""
    return b"%d %b" % (len(message), message)


def _timestamp(time: float) -> str:
    try:
        return datetime.fromtimestamp(time, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    except (ValueError, OverflowError, OSError):  # no time of years 1 to 9999
        return NIL


def _word(text: str, most: int) -> str:
    return _NOT_PRINTABLE.sub("_", text[:most]) or NIL


def _name(key: str) -> str:
    return _NOT_IN_NAME.sub("_", key[:32]) or "_"


def _as_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return json.dumps(value, default=repr, ensure_ascii=False, separators=(",", ":"))


def _parameter(name: str, value: str, room: int) -> tuple[bytes, bool]:
    """`` name="value"``, at most ``room`` bytes of it all, and whether the value, or all of it, was cut for that."""
    room -= len(name) + len(' =""')
    if room <= 0:
        return b"", True
    escaped = value[: room + 1].translate(_IN_VALUE).encode("utf-8", "replace")
    kept = _shortened(escaped, room)
    if len(kept) < len(escaped):
        # Half an escape would take the quotation mark behind it for its other half.
        kept = kept[: len(kept) - (len(kept) - len(kept.rstrip(b"\\"))) % 2]
    return b' %b="%b"' % (name.encode(), kept), len(kept) < len(escaped)


def _shortened(text: bytes, room: int) -> bytes:
    """The beginning of a text in UTF-8, at most ``room`` bytes and no half of a character."""
    if len(text) <= room:
        return text
    return text[: max(room, 0)].decode("utf-8", "ignore").encode()
