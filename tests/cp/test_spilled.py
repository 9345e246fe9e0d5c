"""A spill is read without a trace, and what is no spill is not touched."""

import os
import pathlib
import shutil

import pytest
from tests.cp.spills import contents, put

from retinue.cp.spill import Spill
from retinue.cp.spilled import MOST, Spilled, list_spilled, read_spilled


def numbers(state: pathlib.Path, spilled: Spilled) -> list[int]:
    return [each for chunk in read_spilled(state, spilled) for each in range(chunk.first, chunk.last + 1)]


def test_what_is_there_is_listed_and_read(tmp_path: pathlib.Path) -> None:
    put(tmp_path, "r", "SHOP@2", range(11, 14), range(20, 22))
    put(tmp_path, "r", "SHOP@2", range(1, 3))
    put(tmp_path, "r", "CP", [3])
    aside = put(tmp_path, "r.aside", "SHOP@2", range(4, 7))
    aside.parent.rename(aside.parent.with_name(aside.parent.name + ".5"))
    before = contents(tmp_path)
    listing = list_spilled(tmp_path)
    assert listing.failed == []
    found = [(each.run, each.machine, each.is_aside, numbers(tmp_path, each)) for each in listing.files]
    assert found == [
        ("r", "CP", False, [3]),
        ("r", "SHOP@2", False, [1, 2]),
        ("r", "SHOP@2", True, [4, 5, 6]),
        ("r", "SHOP@2", False, [11, 12, 13, 20, 21]),
    ]
    assert listing.files[2].file.most() == 1
    assert contents(tmp_path) == before
    assert list_spilled(tmp_path / "nowhere").files == []


def test_what_is_just_being_written_stays(tmp_path: pathlib.Path) -> None:
    """It is the control program's, which is about to give it its name."""
    folder = put(tmp_path, "r", "SHOP", [1]).parent
    names = [".new", "00-1", "1-1-1-1", "1-1-x", "٣-٣-1", "0-1-1", "2-1-1", "1-1-2", f"1-{1 << 44}-1"]
    for name in names:
        (folder / name).write_bytes(b"whatever")
    for name in ("\udcff", "r.old", "r.old.aside"):  # of a run, and of a machine
        put(tmp_path, name, "SHOP", [2])
    (tmp_path / "spill" / "r" / "\udcff").mkdir()
    (tmp_path / "spill" / "r" / "\udcff" / "2-2-1").touch()
    before = contents(tmp_path)
    assert len(list_spilled(tmp_path).files) == 1
    assert contents(tmp_path) == before
    assert len(Spill(tmp_path / "spill", "r").files("SHOP")) > 0  # whose folder it is tidies up
    assert not (folder / ".new").exists()


@pytest.mark.parametrize("depth", range(4))
def test_links_are_not_followed(tmp_path: pathlib.Path, depth: int) -> None:
    """Wherever they stand, and whatever they lead to."""
    state, elsewhere = tmp_path / "state", tmp_path / "elsewhere"
    file = put(state, "r", "SHOP", [1])
    (spilled,) = list_spilled(state).files
    place = [state / "spill", state / "spill" / "r", file.parent, file][depth]
    shutil.move(place, elsewhere)
    place.symlink_to(elsewhere)
    before = contents(tmp_path)
    listing = list_spilled(state)
    if depth < 3:
        assert listing.files == []
        assert [path for path, _ in listing.failed] == [place]
    with pytest.raises((OSError, ValueError)):
        read_spilled(state, spilled)
    with pytest.raises((OSError, ValueError)):
        read_spilled(state, (listing.files or [spilled])[0])
    assert contents(tmp_path) == before


def test_what_is_no_file_is_not_waited_for(tmp_path: pathlib.Path) -> None:
    file = put(tmp_path, "r", "SHOP", [1])
    os.mkfifo(file.with_name("2-2-1"))
    file.with_name("3-3-1").mkdir()
    if os.geteuid() == 0:
        os.mknod(file.with_name("4-4-1"), 0o020600, os.makedev(1, 3))
    os.mkfifo(tmp_path / "spill" / "fifo")
    (tmp_path / "spill" / "file").touch()
    listing = list_spilled(tmp_path)
    assert [path.name for path, _ in listing.failed] == ["fifo"]
    assert numbers(tmp_path, listing.files.pop(0)) == [1]
    assert len(listing.files) in (2, 3)
    for each in listing.files:
        with pytest.raises(ValueError, match="it is no regular file"):
            read_spilled(tmp_path, each)


def test_what_is_not_what_its_name_says_is_refused(tmp_path: pathlib.Path) -> None:
    file = put(tmp_path, "r", "SHOP", range(1, 9))
    data = file.read_bytes()
    for spoilt in (b"", data[:-9], data[:20], data.replace(b"shop", b"\xc1hop"), b"\0" * len(data), data + data):
        file.write_bytes(spoilt)
        (spilled,) = list_spilled(tmp_path).files
        with pytest.raises(ValueError, match=r"it ends within a chunk|not what its name says"):
            read_spilled(tmp_path, spilled)
    os.truncate(file, 100 * MOST)  # of which no more is read than a file may have
    (spilled,) = list_spilled(tmp_path).files
    with pytest.raises(ValueError, match="ends within a chunk"):
        read_spilled(tmp_path, spilled)
    file.write_bytes(data)
    assert numbers(tmp_path, list_spilled(tmp_path).files[0]) == [*range(1, 9)]
    file.unlink()
    with pytest.raises(FileNotFoundError):
        read_spilled(tmp_path, spilled)
