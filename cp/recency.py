"""Which parts of a segment go out of real storage first: a guess from who came back after they were unmapped.

Nothing is done here. A segment is looked at in rounds, by chunks: single pages, unless it is very large. Before each
round all of it was taken out of the tables of its machine, so what is in there again has been touched since. A score
tells how often a chunk was: it grows with each round in which it was touched and fades with each in which it was not,
so what is used often outlives what was used once, and what has become of no use is forgotten. What comes back after it
was put out still has its score, and gains more than what was only touched: the machine has waited for it, while a fault
of a reader brings neighbours into its tables that it did not ask for.

All chunks are kept in bytes, one for each, and a step is one operation on all of them: a loop would take milliseconds.
"""

import random
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from retinue.cp.host.file_pages import PAGE

__all__ = ["MOST_CHUNKS", "Range", "Recency", "chunk_of", "coldest", "runs"]

Range = tuple[int, int]
"""Offset and length, in bytes."""

#: Chunks of one segment: of a larger one they are larger than a page.
MOST_CHUNKS: Final = 1 << 18

_BEST: Final = 254
_OUT: Final = 255  # instead of a score: not in real storage, or chosen already

# What a round counts of all rounds. Tried with Zipf's law, with scans beside it and with a change of taste, from 1/64
# to 1/4: a larger part forgets too soon what is used now and then, a smaller one takes too many rounds to forget.
_ROUND: Final = 1 / 32
_RETURN: Final = 1 / 8


def _table(changed: Callable[[int], int]) -> bytes:
    return bytes(min(max(changed(score), 0), _BEST) for score in range(256))


_TOUCHED: Final = _table(lambda score: score + max(1, round((_BEST - score) * _ROUND)))
_RETURNED: Final = _table(lambda score: score + max(1, round((_BEST - score) * _RETURN)))
_FADED: Final = _table(lambda score: score - max(1, round(score * _ROUND)))
_BOUNDED: Final = _table(lambda score: score)
_RUN: Final = re.compile(b"\1+")


def chunk_of(size: int) -> int:
    """Bytes of a chunk of a segment of that size: a page or a power of two of them."""
    chunk = PAGE
    while chunk * MOST_CHUNKS < size:
        chunk *= 2
    return chunk


class Recency:
    """Of one segment of ``size`` bytes. May be used by several threads."""

    def __init__(self, size: int) -> None:
        self.size: Final = size
        self.chunk: Final = chunk_of(size)
        self._chunks = -(-size // self.chunk)
        self._scores = bytes(self._chunks)
        self._here = bytes(self._chunks)
        self._order = bytes([_OUT]) * self._chunks
        self._hand = 0
        self._lock = threading.Lock()

    def look(self, resident: bytes, touched: bytes | None) -> None:
        """A round: what is in real storage, and what was touched, with a byte for each page; 1 for yes.

        Where nobody can tell what was touched (None), the lot decides: who was read last would be a worse guess.
        """
        here = self._by_chunk(resident)
        with self._lock:
            if touched is None:
                self._scores = random.randbytes(self._chunks).translate(_BOUNDED)
            else:
                scores = self._scores
                stayed = _pick(self._by_chunk(touched), scores.translate(_TOUCHED), scores.translate(_FADED))
                came = _pick(self._here, bytes(self._chunks), here)
                self._scores = _pick(came, scores.translate(_RETURNED), stayed)
            self._here = here
            self._order = _pick(here, self._scores, bytes([_OUT]) * self._chunks)

    def _by_chunk(self, pages: bytes) -> bytes:
        """Whether any page of each chunk is."""
        each = self.chunk // PAGE
        if each == 1:
            return pages
        padded = pages + bytes(self._chunks * each - len(pages))
        found = 0
        for at in range(each):
            found |= int.from_bytes(padded[at::each], "big")
        return found.to_bytes(self._chunks, "big")

    @property
    def left(self) -> int:
        """Bytes that were in real storage at the last look and were not chosen since, in whole chunks."""
        return (self._chunks - self._order.count(_OUT)) * self.chunk

    def scores(self) -> bytes:
        """Of those chunks, in any order."""
        return self._order.translate(None, bytes([_OUT]))

    def choose(self, below: int, more: int, *, keep: bool = False) -> bytes:
        """Those with a lower score, and so many chunks that have just this one: a byte for each chunk, 1 for yes. They
        are not chosen again before the next look, but with ``keep``."""
        with self._lock:
            order = self._order
            chosen = bytearray(order.translate(bytes(score < below for score in range(256))))
            at = self._hand
            for _ in range(min(more, order.count(below))):
                if (at := order.find(below, at)) < 0:
                    at = order.find(below)
                chosen[at] = 1
                at += 1
            if not keep:
                self._hand = at
                self._order = _pick(chosen, bytes([_OUT]) * self._chunks, order)
        return bytes(chosen)

    def dropped(self, chosen: bytes, resident: bytes) -> bytes:
        """Chosen chunks were dropped, and these pages are in real storage after that. Returns those that are left.

        Who is out, and there at the next look, has come back.
        """
        left = _pick(chosen, self._by_chunk(resident), bytes(self._chunks))
        with self._lock:
            self._here = _pick(chosen, left, self._here)
        return left

    def ranges(self, chosen: bytes) -> list[Range]:
        """Where chunks are, those that lie together as one."""
        return list(runs(chosen, self.chunk, self.size))


def coldest(of: Sequence[Recency], most: int, *, keep: bool = False) -> list[bytes]:
    """Of each of several segments the chunks that are missed least, together at most so many bytes, or a chunk more."""
    scores = [each.scores() for each in of]
    last = 0
    while last < _BEST and most > 0:
        size = sum(each.count(last) * recency.chunk for recency, each in zip(of, scores, strict=True))
        if size >= most:
            break
        most -= size
        last += 1
    found = []
    for recency, each in zip(of, scores, strict=True):
        more = min(-(-most // recency.chunk), each.count(last)) if most > 0 else 0
        most -= more * recency.chunk
        found.append(recency.choose(last, more, keep=keep))
    return found


def runs(chunks: bytes | bytearray, chunk: int, size: int) -> Iterator[Range]:
    """Of a byte for each chunk of so many bytes, 1 for yes: those that lie together together."""
    for run in _RUN.finditer(chunks):
        yield run.start() * chunk, min(run.end() * chunk, size) - run.start() * chunk


def _pick(which: bytes | bytearray, ones: bytes, others: bytes) -> bytes:
    """Of each place the byte of ``ones`` where ``which`` is 1, else of ``others``."""
    mask = int.from_bytes(which, "big") * 255
    one, other = int.from_bytes(ones, "big"), int.from_bytes(others, "big")
    return (other ^ ((one ^ other) & mask)).to_bytes(len(others), "big")
