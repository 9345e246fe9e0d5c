"""What may be the value of a secret, and where it is read."""

import os
import pathlib

import pytest
from attrs import evolve

from retinue.cp.directory import Directory, DirectoryErrors, load
from retinue.cp.directory.model import SECRET_MAXIMUM
from retinue.cp.directory.programs import Problem
from retinue.cp.directory.secrets import named_variables, read_file, read_values

TOPOLOGY = """\
[system]
name = "SHOP"
[machines.SHOP]
exec = ["cat"]
secrets.key = { file = "key.txt" }
secrets.one = { variable = "ONE" }
[machines.TILL]
exec = ["cat"]
secrets.also = { variable = "ONE" }
secrets.two = { variable = "TWO" }
"""


@pytest.fixture
def directory(tmp_path: pathlib.Path) -> Directory:
    (tmp_path / "key.txt").write_bytes(b"a key of some length\n\n")
    (tmp_path / "shop.toml").write_text(TOPOLOGY)
    return load(tmp_path / "shop.toml")


def test_values_are_told_by_machine_and_one_newline_of_a_file_is_no_part_of_it(directory: Directory) -> None:
    assert named_variables(directory) == {"ONE", "TWO"}
    assert read_values(directory, {"ONE": b"the first\n", "TWO": b"\xff" * 8, "THREE": b""}, "shop.toml") == {
        "SHOP": {"key": b"a key of some length\n", "one": b"the first\n"},
        "TILL": {"also": b"the first\n", "two": b"\xff" * 8},
    }


def test_every_value_that_cannot_be_had_is_told_with_its_place(directory: Directory) -> None:
    (directory.folder / "key.txt").unlink()
    with pytest.raises(DirectoryErrors) as caught:
        read_values(directory, {"TWO": b"2" * (SECRET_MAXIMUM + 1)}, "shop.toml")
    assert str(caught.value).splitlines() == [
        f"shop.toml:5: [machines.SHOP.secrets] key: the file {directory.folder}/key.txt does not exist",
        "shop.toml:6: [machines.SHOP.secrets] one: there is no variable ONE in the environment - set it for this "
        "command",
        "shop.toml:9: [machines.TILL.secrets] also: there is no variable ONE in the environment - set it for this "
        "command",
        f"shop.toml:10: [machines.TILL.secrets] two: the variable TWO is larger than {SECRET_MAXIMUM} bytes",
    ]


def test_instances_have_the_values_of_their_machine_and_its_mistakes_are_told_once(directory: Directory) -> None:
    shop, till = directory.machines
    several = evolve(directory, machines=(evolve(shop, instances=2), till)).expanded()
    values = read_values(several, {"ONE": b"the first", "TWO": b"the second"}, "shop.toml")
    assert values["SHOP@1"] == values["SHOP@2"] == {"key": b"a key of some length\n", "one": b"the first"}
    with pytest.raises(DirectoryErrors) as caught:
        read_values(several, {}, "shop.toml")
    assert [error.line for error in caught.value.errors] == [6, 9, 10]


def test_file_may_be_anywhere_and_of_the_full_size(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "key"
    path.write_bytes(b"k" * SECRET_MAXIMUM + b"\n")
    assert read_file(str(path), pathlib.Path("/")) == b"k" * SECRET_MAXIMUM
    path.write_bytes(b"k" * SECRET_MAXIMUM + b"\n\n")
    problem = read_file("key", tmp_path)
    assert isinstance(problem, Problem)
    assert problem.message == f"the file {path} is larger than {SECRET_MAXIMUM} bytes"
    path.write_bytes(b"1234567\n")
    problem = read_file("key", tmp_path)
    assert isinstance(problem, Problem)
    assert "has 7 bytes, and a secret has at least 8" in problem.message


def test_what_is_no_file_is_not_waited_for(tmp_path: pathlib.Path) -> None:
    os.mkfifo(tmp_path / "key")
    problem = read_file("key", tmp_path)
    assert isinstance(problem, Problem)
    assert problem.message == f"the file {tmp_path}/key is not a regular file"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_file_without_permission_is_told(tmp_path: pathlib.Path) -> None:
    (tmp_path / "key").write_bytes(b"12345678")
    (tmp_path / "key").chmod(0)
    problem = read_file("key", tmp_path)
    assert isinstance(problem, Problem)
    assert "cannot be read: Permission denied" in problem.message
