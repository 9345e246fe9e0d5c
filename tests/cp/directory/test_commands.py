"""How the program of a native machine is found."""

import os
import pathlib

import pytest

from retinue.cp.directory import Directory, MachineEntry, System, executable
from retinue.cp.directory.commands import find
from retinue.cp.directory.programs import Problem


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    """A folder with a program ``serve`` in it."""
    (tmp_path / "serve").write_text("#!/bin/sh\n")
    (tmp_path / "serve").chmod(0o755)
    return tmp_path.resolve()


def test_name_is_looked_up_in_the_hosts_folders_whatever_path_says(
    folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(folder))
    found = find("sh", folder)
    assert found in ("/usr/local/bin/sh", "/usr/bin/sh", "/bin/sh")
    assert isinstance(find("serve", folder), Problem)


def test_path_is_absolute_or_below_the_topology(folder: pathlib.Path) -> None:
    assert find("./serve", folder) == str(folder / "serve")
    assert find(str(folder / "serve"), pathlib.Path("/")) == str(folder / "serve")
    for program in ("../serve", "/usr/../bin/sh", "./a/../serve", "sub/serve", "./", ".", "/", "{disks.a}"):
        assert isinstance(find(program, folder), Problem), program


def test_link_is_kept_for_its_name_tells_some_programs_what_to_do(folder: pathlib.Path) -> None:
    os.symlink("serve", folder / "check")
    assert find("./check", folder) == str(folder / "check")
    os.symlink("nowhere", folder / "dangling")
    problem = find("./dangling", folder)
    assert isinstance(problem, Problem)
    assert "is no file" in problem.message


def test_program_that_has_gone_is_an_error_of_the_file_system(folder: pathlib.Path) -> None:
    machine = MachineEntry("SERVE", "exec", "./serve", command=("./serve", "now"))
    topology = Directory(folder / "it.toml", System("IT"), (machine,))
    assert executable(topology, machine) == str(folder / "serve")
    (folder / "serve").unlink()
    with pytest.raises(FileNotFoundError, match="there is no program"):
        executable(topology, machine)
