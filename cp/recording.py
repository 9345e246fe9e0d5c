"""A recording: what a tap has shown, in a file. The format is docs/reference/recording.md.

The file is a sequence of msgpack maps: a header, then one map for each item in the order it was seen.
"""

import os
import pathlib
import time
from collections.abc import Iterator
from typing import Any, BinaryIO, Final

import attrs
import msgpack

from retinue.cp.errors import ControlProgramError

FORMAT: Final = "retinue-recording"
VERSION: Final = 1
# Bytes of the largest item that is read; a tap shows none that is nearly as large.
LARGEST: Final = 64 * 1024 * 1024
# Bytes read at once.
CHUNK: Final = 256 * 1024

Item = dict[str, Any]

_DIRECTIONS: Final = ("->", "<-")


class BadRecording(ControlProgramError):
    """The file is no recording, or is damaged; ``offset`` is the first byte that does not fit."""

    def __init__(self, file: str | os.PathLike[str], offset: int, problem: str) -> None:
        self.file, self.offset, self.problem = str(file), offset, problem
        super().__init__(f"{self.file}: byte {offset}: {problem}")


@attrs.frozen
class Header:
    """What a recording says about itself. ``time`` is when it began, in seconds since the epoch."""

    system: str
    edge: str
    time: float


class Writer:
    """A new recording, readable for its owner alone: messages are nobody else's business."""

    def __init__(self, file: str | os.PathLike[str], system: str, edge: str) -> None:
        """Raises OSError, FileExistsError if there is such a file: a recording is never overwritten."""
        self.count = 0
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._stream: BinaryIO = os.fdopen(descriptor, "wb", buffering=0)
        header = {"format": FORMAT, "version": VERSION, "system": system, "edge": edge, "time": time.time()}
        self._write(msgpack.packb(header))

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def write(self, items: list[Item]) -> None:
        """Add items, whole or not at all as far as the host can promise that. Raises OSError."""
        self._write(b"".join(map(msgpack.packb, items)))
        self.count += len(items)

    def _write(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[self._stream.write(rest) :]


class Reader:
    """An open recording: its ``header``, and an iteration over its items, each of a checked shape."""

    def __init__(self, file: str | os.PathLike[str]) -> None:
        """Raises OSError, and :exc:`BadRecording` for a file that is none."""
        self._file = pathlib.Path(file)
        self._stream = self._file.open("rb")
        try:
            self._values = self._read()
            self.header = self._header()
        except BaseException:
            self._stream.close()
            raise

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def __iter__(self) -> Iterator[Item]:
        """The items that follow. Raises :exc:`BadRecording` at the first that is damaged."""
        for offset, value in self._values:
            if problem := _problem(value):
                raise BadRecording(self._file, offset, problem)
            yield value

    def _header(self) -> Header:
        foreign = f"not a recording (it does not begin with a map of the format {FORMAT!r})"
        try:
            _, untrusted = next(self._values, (0, None))
        except BadRecording:
            raise BadRecording(self._file, 0, foreign) from None
        if type(untrusted) is not dict or untrusted.get("format") != FORMAT:
            raise BadRecording(self._file, 0, foreign)
        if untrusted.get("version") != VERSION:
            version = str(untrusted.get("version"))[:40]
            raise BadRecording(self._file, 0, f"a recording of version {version}; this is Retinue for {VERSION}")
        system, edge, began = (untrusted.get(name) for name in ("system", "edge", "time"))
        if type(system) is not str or type(edge) is not str or type(began) is not float:
            raise BadRecording(self._file, 0, "a damaged recording: its header has no system, edge and time")
        return Header(system, edge, began)

    def _read(self) -> Iterator[tuple[int, Any]]:
        """Each value of the file with the place where it begins."""
        unpacker = msgpack.Unpacker(max_buffer_size=LARGEST, strict_map_key=True)
        offset = fed = 0
        while True:
            chunk = self._stream.read(CHUNK)
            try:
                unpacker.feed(chunk)
                fed += len(chunk)
                for value in unpacker:
                    yield offset, value
                    offset = unpacker.tell()
            except Exception as exc:  # msgpack raises its own, ValueError, UnicodeDecodeError, BufferFull
                raise BadRecording(self._file, offset, f"a damaged item: {type(exc).__name__}") from None
            if not chunk:
                if fed > offset:
                    text = f"the last item is cut off: the file ends at byte {fed}"
                    raise BadRecording(self._file, offset, text)
                return


# What an item may say, and of which type.
_TYPES: Final[dict[str, type]] = {
    "path": int,
    "direction": str,
    "kind": str,
    "id": int,
    "last": int,
    "priority": bool,
    "redelivered": bool,
    "descriptors": int,
    "redacted": int,
    "omitted": str,
    "bulk": int,
    "bytes": int,
    "code": str,
    "text": str,
    "latency_us": int,
    "lost": int,
}


def _problem(untrusted_item: Any) -> str | None:
    """What is wrong with an item, or None."""
    if type(untrusted_item) is not dict:
        return "an item is not a map"
    for name, kind in _TYPES.items():
        if name in untrusted_item and type(untrusted_item[name]) is not kind:
            return f"{name} of an item is not {kind.__name__}"
    if "lost" in untrusted_item:
        return None
    if type(untrusted_item.get("time")) is not float or "path" not in untrusted_item or "kind" not in untrusted_item:
        return "an item without time, path and kind"
    if untrusted_item.get("direction") not in _DIRECTIONS:
        return "an item without a direction"
    if untrusted_item["kind"] in ("send", "call", "reply", "reject") and "id" not in untrusted_item:
        return "a message without an id"
    return None
