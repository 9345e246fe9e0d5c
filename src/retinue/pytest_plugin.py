"""The fixture ``retinue_system`` for pytest with pytest-trio. pytest finds it by itself where Retinue is installed.

What it takes is imported when a test asks for it: every run of pytest in this environment loads this module.
"""

import pathlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from retinue.testing import SimulatedSystem


@pytest.fixture
async def retinue_system(request: pytest.FixtureRequest) -> "AsyncIterator[Callable[..., Awaitable[SimulatedSystem]]]":
    """Starts simulated systems, which end with the test: ``system = await retinue_system("shop.toml", fakes={...})``.

    The arguments are those of :func:`retinue.testing.open_system`. The name of a file may be relative to the folder of
    the test. For a virtual clock let the test have the fixture ``autojump_clock`` of pytest-trio as well.
    """
    import trio

    from retinue.testing import open_system

    async def run(arguments: dict[str, Any], *, task_status: "trio.TaskStatus[SimulatedSystem]") -> None:
        async with open_system(**arguments) as system:
            task_status.started(system)
            await trio.sleep_forever()

    async with trio.open_nursery() as nursery:

        async def start(topology: Any, **more: Any) -> "SimulatedSystem":
            beside = None if isinstance(topology, str) and "\n" in topology else request.path.parent / topology
            if beside is not None and beside.exists():
                topology = pathlib.Path(beside)
            system: SimulatedSystem = await nursery.start(run, {"topology": topology, **more})
            return system

        yield start
        nursery.cancel_scope.cancel()
