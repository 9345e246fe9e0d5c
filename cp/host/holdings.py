"""What the nucleus holds for the next control program. Standard library only.

Notes and descriptors under keys, as the control program has them kept, and every exit of a machine until one has said
that it took note of it. Notes are held packed: they are not looked into.
"""

from typing import Any

from retinue.cp.host.link import LENT_MAX, NOTE_MAX, Link, close_all, packed

__all__ = ["Holdings"]


class Holdings:
    """Notes, descriptors and exits. Keys stay in the order in which they came first."""

    def __init__(self) -> None:
        self._kept: dict[str, tuple[bytes, list[int]]] = {}
        self.exits: dict[tuple[str, int], dict[str, Any]] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def keep(self, key: str, note: dict[str, Any], descriptors: list[int]) -> None:
        """Hold a note, and take the descriptors out of the list; what was held under the key goes."""
        text = packed([key, note, len(descriptors)], NOTE_MAX)
        before = self._kept.get(key, (b"", []))[1]
        self._kept[key] = text, descriptors[:]
        descriptors.clear()
        close_all(before)

    def drop(self, key: str) -> None:
        """Hold nothing any more under a key."""
        close_all(self._kept.pop(key, (b"", []))[1])

    def show(self, link: Link) -> None:
        """Have a link tell everything that is kept, as much of it in one message as it takes."""
        texts: list[bytes] = []
        lent: list[int] = []
        size = 0
        for text, descriptors in [*self._kept.values(), (b"", [])]:
            size += len(text) + 1
            if texts and (not text or size > NOTE_MAX or len(lent) + len(descriptors) > LENT_MAX):
                link.lend(b'{"event":"kept","all":[%s]}' % b",".join(texts), lent)
                texts, lent, size = [], [], len(text)
            texts.append(text)
            lent += descriptors
