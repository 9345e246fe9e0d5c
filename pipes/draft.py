"""A large body that its program makes in place, in the memory it will travel in, so that this end copies nothing."""

from contextlib import suppress
from typing import Protocol


class Place(Protocol):
    """Memory that others can be given."""

    def discard(self) -> None: ...


class Draft:
    """A body for one message of the path that has made it (:meth:`Path.draft`).

    ``view`` is its memory, which the program fills; what it holds at first is undefined. The draft is then sent like
    bytes, once, and arrives as bytes. That ends the view. Slices and arrays that were made of it are to be let go
    before: an array is noticed (BufferError), but who writes to a slice afterwards changes what was sent, or what is
    sent later. A draft that is not sent costs its memory until :meth:`close`, or until nobody has it any more. Sent or
    not, the peer may look at what is written into it: the memory may be some that the peer has had before.
    """

    __slots__ = ("_nbytes", "_sent", "place", "view")

    def __init__(self, view: memoryview, place: Place | None = None) -> None:
        self.view = view
        self.place = place  # None: memory of its own, which is copied like any other
        self._nbytes = view.nbytes
        self._sent = False

    def __len__(self) -> int:
        return self._nbytes

    def check(self) -> None:
        """Raise ValueError when it was sent or closed before."""
        if self._sent:
            raise ValueError("a draft is for one message, and this one was sent or closed before")

    def take(self) -> memoryview:
        """It is being sent; returns what is still to be copied if it has no place.

        Raises as :meth:`check`; BufferError while an array over the view is in use.
        """
        self.check()
        if self.place is not None:
            try:
                self.view.release()
            except BufferError:
                raise BufferError("an array over the view of the draft is still in use") from None
        self._sent = True
        return self.view

    def close(self) -> None:
        """Give the memory back. No effect when it was sent, or a second time."""
        if self._sent:
            return
        self._sent = True
        with suppress(BufferError):
            self.view.release()
        if self.place is not None:
            # Nobody else gets it: what is written there was not meant to be read.
            self.place.discard()

    def __enter__(self) -> "Draft":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()
