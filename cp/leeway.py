"""One descriptor that is held for the moment when there is no other: what has to be done with a file then is done.

It is given up before something is asked for again, and held again afterwards. Whoever takes it meanwhile (a thread, for
ENFILE any process of the host) takes it away: then it is as if there had been none, until one is free.
"""

import contextlib
import errno
import os
from collections.abc import Callable
from typing import Final, TypeVar

# No descriptor is left: to this process, or to the host.
EXHAUSTED: Final = (errno.EMFILE, errno.ENFILE)

T = TypeVar("T")


class Leeway:
    """Held from the beginning, if there is one, and let go of with the object."""

    def __init__(self) -> None:
        self._held: int | None = None
        self._hold()

    def __del__(self) -> None:
        self._let_go()

    def do(self, work: Callable[[], T]) -> T:
        """What ``work`` returns, which needs one descriptor at a time. It is done twice if there was none at first."""
        try:
            return work()
        except OSError as exc:
            if exc.errno not in EXHAUSTED or not self._let_go():
                raise
            return work()
        finally:
            self._hold()

    def _hold(self) -> None:
        if self._held is None:
            with contextlib.suppress(OSError):
                self._held = os.open("/", os.O_PATH | os.O_CLOEXEC)

    def _let_go(self) -> bool:
        held, self._held = self._held, None
        if held is None:
            return False
        os.close(held)
        return True
