"""A keeper of the records of a log, in the process of its test, which says how it takes them."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import trio
import trio.testing

from retinue.cp.syslog import Syslog
from retinue.pipes import Path, memory_pair, open_path


@asynccontextmanager
async def served(serve: Callable[[Path], Awaitable[object]]) -> AsyncIterator[tuple[Path, Path]]:
    """Both ends of a path, the second of which a task serves: when that ends the block does."""
    ours, theirs = memory_pair()
    async with open_path(ours) as path, open_path(theirs) as other, trio.open_nursery() as nursery:

        async def run() -> None:
            await serve(other)
            nursery.cancel_scope.cancel()

        nursery.start_soon(run)
        yield path, other
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def handing_over(
    log: Syslog, connect: Callable[[], AbstractAsyncContextManager[Path]], *, limit: float = 30
) -> AsyncIterator[None]:
    """The log hands its records over meanwhile, and has done what it can without the block before that begins."""
    with trio.fail_after(limit):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(log.keeper.run, connect)
            await trio.testing.wait_all_tasks_blocked()
            yield
            nursery.cancel_scope.cancel()
