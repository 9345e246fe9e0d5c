"""Which parts of a segment go out of real storage first: a guess from who came back after they were unmapped.

Nothing is done here. A segment is looked at in rounds, by chunks of some pages. Before each round all its chunks were
taken out of the tables of its machine, so those that are in there again have been touched since. Each round counts a
little less than the one after it: what is used often outlives what was used once, and what has become of no use is
forgotten.
"""

import random
from collections.abc import Iterator, Sequence
from typing import Final

__all__ = ["CHUNK", "Recency", "chunk_of", "runs"]

#: Bytes of a chunk: as much as one fault of a reader brings into its tables.
CHUNK: Final = 64 * 1024
#: Chunks of one segment: of a larger one they are larger.
MOST_CHUNKS: Final = 16_384

# What a round counts when there was another one. Tried with Zipf and with a change of taste: 0.5 forgets too soon what
# is used now and then, and from 0.95 on it takes too many rounds to forget.
_FADING: Final = 0.875


def chunk_of(size: int) -> int:
    """Bytes of a chunk of a segment of that size: a power of two times :data:`CHUNK`."""
    chunk = CHUNK
    while chunk * MOST_CHUNKS < size:
        chunk *= 2
    return chunk


class Recency:
    """Of one segment. ``pages`` is how many pages a chunk has."""

    def __init__(self, pages: int) -> None:
        self._pages = pages
        self._scores: list[float] = []
        self._arrived: list[int] = []  # the round in which a chunk was first seen in real storage
        self._round = 0

    def look(self, resident: bytes, touched: bytes | None) -> list[int]:
        """A round: what is in real storage, and what was touched, with a byte for each page; 1 for yes.

        Returns how many pages of each chunk are in real storage. Where nobody can tell what was touched (None), the lot
        decides: who was read last would be a worse guess.
        """
        chunks = range(0, len(resident), self._pages)
        counts = [resident.count(1, at, at + self._pages) for at in chunks]
        self._round += 1
        if not self._scores:
            self._scores, self._arrived = [0.0] * len(counts), [0] * len(counts)
        scores, arrived = self._scores, self._arrived
        for chunk, count in enumerate(counts):
            scores[chunk] *= _FADING
            if not count:
                arrived[chunk] = 0
                continue
            arrived[chunk] = arrived[chunk] or self._round
            if touched is None:
                scores[chunk] = random.random()
            elif touched.find(1, chunk * self._pages, (chunk + 1) * self._pages) >= 0:
                scores[chunk] += 1
        return counts

    def oldest(self, counts: Sequence[int]) -> list[tuple[float, int, int]]:
        """Chunks that are in real storage, as (score, round of arrival, number), those first that are missed least."""
        return sorted((self._scores[each], self._arrived[each], each) for each, count in enumerate(counts) if count)


def runs(chunks: Sequence[int], chunk: int, size: int) -> Iterator[tuple[int, int]]:
    """Offsets and lengths of chunks, those together that lie together."""
    first = last = -1
    for each in sorted(chunks):
        if each != last:
            if first >= 0:
                yield first * chunk, min(last * chunk, size) - first * chunk
            first = each
        last = each + 1
    if first >= 0:
        yield first * chunk, min(last * chunk, size) - first * chunk
