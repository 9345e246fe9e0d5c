"""Which folders a machine is given."""

import os
import pathlib

import pytest

from retinue.cp.directory import Directory, Disk, LinkedDisk, MachineEntry, System
from retinue.cp.disks import Disks
from retinue.cp.host.seal.users import FIRST_OWN
from retinue.cp.users import COUNT, own_users

MIB = 1024**2
FILES = MachineEntry(
    "FILES",
    "program",
    "files",
    storage=64 * MIB,
    disks=(Disk("a", 100 * MIB, linked_by=(("SHOP", "rw"),)), Disk("t", 16 * MIB, temporary=True)),
)
SHOP = MachineEntry(
    "SHOP", "program", "shop", storage=32 * MIB, disks=(Disk("own", MIB),), links=(LinkedDisk("b", "FILES", "a", "rw"),)
)
READER = MachineEntry("READER", "program", "reader", links=(LinkedDisk("b", "FILES", "a"),))
NONE = MachineEntry("NONE", "program", "none")
OPEN = MachineEntry("OPEN", "program", "open", disks=(Disk("own", MIB), Disk("all")))
MACHINES = (FILES, SHOP, READER, NONE, OPEN)


@pytest.fixture
def disks(tmp_path: pathlib.Path) -> Disks:
    made = Disks(tmp_path, {machine.name: machine for machine in MACHINES})
    made.make({})
    return made


def test_link_is_the_folder_of_the_owners_disk(disks: Disks, tmp_path: pathlib.Path) -> None:
    at = f"{tmp_path}/disks"
    assert disks.table(SHOP) == {"own": f"{at}/SHOP/own", "b": f"{at}/FILES/a"}
    assert disks.held(SHOP)[:3] == ((f"{at}/SHOP/own", f"{at}/FILES/a"), (), ())
    assert disks.held(READER)[:3] == ((), (f"{at}/FILES/a",), ())
    assert disks.held(FILES)[:3] == ((f"{at}/FILES/a",), (), ((f"{at}/FILES/t", 16 * MIB),))
    assert os.path.isdir(f"{at}/FILES/t")


def test_file_may_fill_the_largest_disk_and_is_bounded_by_the_storage_where_there_is_none(disks: Disks) -> None:
    assert disks.held(FILES).file_size == 100 * MIB
    assert disks.held(SHOP).file_size == 100 * MIB
    assert disks.held(READER).file_size == 0
    assert disks.held(NONE).file_size == 0
    assert disks.held(OPEN).file_size == 2**63 - 1


def test_temporary_disk_is_emptied_and_no_other(disks: Disks) -> None:
    for name in ("a", "t"):
        folder = pathlib.Path(disks.folder("FILES", name))
        (folder / "sub").mkdir()
        (folder / "sub" / "file").write_text("x")
        os.symlink("/", folder / "link")
    disks.empty(FILES)
    assert os.listdir(disks.folder("FILES", "t")) == []
    assert sorted(os.listdir(disks.folder("FILES", "a"))) == ["link", "sub"]


def test_temporary_disk_is_emptied_however_deep_it_was_made(disks: Disks) -> None:
    """Deeper than a path may be long, and than a recursion may go; and closed to its own user."""
    folder = os.open(disks.folder("FILES", "t"), os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("0", dir_fd=folder)
        with os.fdopen(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=folder), "w"):
            inner = os.open("0", os.O_RDONLY, dir_fd=folder)
        os.close(folder)
        folder = inner
    os.mkdir("closed", 0, dir_fd=folder)
    os.close(folder)
    disks.empty(FILES)
    assert os.listdir(disks.folder("FILES", "t")) == []


def test_machines_that_are_joined_by_links_are_one_user() -> None:
    topology = Directory(pathlib.Path("/srv/it.toml"), System("IT"), MACHINES)
    users = own_users(topology)
    assert users.keys() == {machine.name for machine in MACHINES}
    assert users["FILES"] == users["SHOP"] == users["READER"]
    assert len(set(users.values())) == 3
    assert all(FIRST_OWN <= user < FIRST_OWN + COUNT for user in users.values())
    assert own_users(topology) == users
