"""An application for the correct topologies of this folder. It is found and read, never run."""

from collections.abc import Awaitable, Callable
from typing import Any


class Window:
    async def __call__(
        self,
        scope: dict[str, Any],
        receive: Callable[[], Awaitable[dict[str, Any]]],
        send: Callable[[dict[str, Any]], Awaitable[None]],
    ) -> None:
        """Answer nothing."""


application = Window()
