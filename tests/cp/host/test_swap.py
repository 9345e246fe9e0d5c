"""The paging volume: made, swap of the host, and taken back; nobody else's file or swap is touched."""

import os
import pathlib
import signal
import stat
import subprocess
import sys
import time

import pytest
from tests.volumes import MIB, open_volume, root_only, swaps

from retinue.cp.host import process
from retinue.cp.host.swap import GUARD_ENTRY, Volume, VolumeFailed, active


@root_only
def test_a_volume_is_swap_until_it_is_closed(tmp_path: pathlib.Path) -> None:
    """It is of the size asked for, without holes, nobody else's; what is there of it afterwards is nothing."""
    with open_volume(tmp_path, 8 * MIB) as volume:
        about = os.stat(volume.path)
        assert stat.S_IMODE(about.st_mode) == 0o600
        assert about.st_blocks * 512 >= about.st_size == 8 * MIB
        assert active(volume.path)
        volume.open(adopt=True)  # the next control program
        assert active(volume.path)
    assert os.listdir(tmp_path) == []
    volume.close()


@root_only
def test_a_volume_that_a_killed_system_has_left_is_made_anew(tmp_path: pathlib.Path) -> None:
    """While it is still swap, and when only the file is there."""
    with open_volume(tmp_path, 8 * MIB) as volume:
        first = os.stat(volume.path).st_ino, pathlib.Path(volume.path).read_bytes()[:4096]
        volume.open(adopt=False)
        assert active(volume.path)
        assert (os.stat(volume.path).st_ino, pathlib.Path(volume.path).read_bytes()[:4096]) != first


@root_only
def test_a_name_with_spaces(tmp_path: pathlib.Path) -> None:
    """The kernel writes it in its list in a way of its own."""
    folder = tmp_path / "a b\tc"
    folder.mkdir()
    with open_volume(folder, 8 * MIB) as volume:
        assert active(volume.path)


@pytest.mark.parametrize("content", [b"", b"my only copy", b"\0" * 4086 + b"SWAPSPACE2"])
def test_nobody_elses_file_is_taken(tmp_path: pathlib.Path, content: bytes) -> None:
    """Not even one that is a swap file, but none of ours."""
    file = tmp_path / "page.img"
    file.write_bytes(content)
    with pytest.raises(VolumeFailed):
        Volume(str(file), 8 * MIB).open(adopt=False)
    assert file.read_bytes() == content


def test_there_is_no_room(tmp_path: pathlib.Path) -> None:
    """The file that was begun goes; the host's swap is as it was."""
    before = swaps(tmp_path)
    with pytest.raises(VolumeFailed, match=r"page\.img: "):
        Volume(str(tmp_path / "page.img"), 1 << 50).open(adopt=False)
    assert os.listdir(tmp_path) == []
    assert swaps(tmp_path) == before


@root_only
def test_the_guard_takes_it_back_when_the_nucleus_is_killed(tmp_path: pathlib.Path) -> None:
    """It waits for that, and ends then."""
    with open_volume(tmp_path, 8 * MIB) as volume:
        nucleus = subprocess.Popen([sys.executable, "-S", "-c", "import signal; signal.pause()"])
        pidfd = os.pidfd_open(nucleus.pid)
        arguments = {"path": process.import_path(), "entry": GUARD_ENTRY, "parent": 0, "title": "volume-guard"}
        arguments |= {"nucleus": pidfd, "volume": volume.path}
        guard = subprocess.Popen(process.command(arguments, site=False), pass_fds=[pidfd])
        os.close(pidfd)
        try:
            while "volume-guard" not in pathlib.Path(f"/proc/{guard.pid}/comm").read_text():
                time.sleep(0.001)  # until it is what it will be; the test has a limit of its own
            assert active(volume.path)
            nucleus.send_signal(signal.SIGKILL)
            nucleus.wait()
            assert guard.wait(30) == 0
        finally:
            for one in (nucleus, guard):
                one.kill()
                one.wait()
        assert not active(volume.path)
        assert not os.path.exists(volume.path)
