"""A paging volume for tests: swap in a file of the test's own, switched off whatever happens."""

import contextlib
import os
import pathlib
from collections.abc import Iterator

import pytest

from retinue.cp.host.swap import Volume, VolumeFailed, active

MIB = 1 << 20

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can have swap")


def swaps(folder: pathlib.Path) -> str:
    """All swap of this host that is below a folder, but for how much of it is used: others come and go meanwhile."""
    lines = pathlib.Path("/proc/swaps").read_text().splitlines()
    return "\n".join(" ".join(line.split()[:3]) for line in lines if line.startswith(f"{folder}/"))


@contextlib.contextmanager
def open_volume(folder: pathlib.Path, size: int = 64 * MIB) -> Iterator[Volume]:
    """One that is swap within the block. The test is skipped where a file in its folder cannot be."""
    before = swaps(folder)
    volume = Volume(str(folder / "page.img"), size)
    try:
        try:
            volume.open(adopt=False)
        except VolumeFailed as error:
            pytest.skip(str(error))
        yield volume
    finally:
        volume.close()
    assert not active(volume.path)
    assert swaps(folder) == before
