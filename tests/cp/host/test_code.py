"""Which files count as code."""

import os
import sys
from pathlib import Path

import trio

import retinue
from retinue.cp.host import process
from retinue.cp.host.seal import code


def test_of_a_program_folder_modules_and_packages_are_code_and_nothing_else(tmp_path: Path) -> None:
    for name in ("shop.py", "fast.cpython-311-x86_64-linux-gnu.so", "shop.toml", "secret.key", "notes.txt", ".env"):
        (tmp_path / name).touch()
    for name in ("package", "data", "__pycache__"):
        (tmp_path / name).mkdir()
    (tmp_path / "package" / "__init__.py").touch()
    (tmp_path / "folder.py").mkdir()
    expected = {"shop.py", "package", "__pycache__"}
    found = {os.path.relpath(path, tmp_path) for path in code.program_paths([str(tmp_path)])}
    assert found - {"fast.cpython-311-x86_64-linux-gnu.so"} == expected


def test_subpackages_that_are_links_lead_to_their_targets(tmp_path: Path) -> None:
    elsewhere, package = tmp_path / "elsewhere", tmp_path / "src" / "package"
    for folder in (elsewhere, package):
        folder.mkdir(parents=True)
        (folder / "__init__.py").touch()
    (tmp_path / "keys").mkdir()
    (package / "part").symlink_to(elsewhere)
    (package / "keys").symlink_to(tmp_path / "keys")
    found = {os.path.realpath(path) for path in code.program_paths([str(tmp_path / "src")])}
    assert found == {str(package), str(elsewhere)}


def test_a_folder_that_cannot_be_listed_holds_no_code(tmp_path: Path) -> None:
    assert code.program_paths([str(tmp_path / "missing")]) == []


def test_an_entry_of_the_import_path_that_is_no_package_folder_is_not_granted_whole(tmp_path: Path) -> None:
    (tmp_path / "module.py").touch()
    (tmp_path / "diary.txt").touch()
    assert code.library_paths([str(tmp_path)]) == [str(tmp_path / "module.py")]


def test_everything_retinue_is_made_of_is_code() -> None:
    granted = [os.path.realpath(path) for path in (*code.interpreter_paths(), *code.library_paths(sys.path))]
    for path in (*retinue.__path__, process.__file__, os.__file__, trio.__file__):
        assert any(os.path.realpath(str(path)).startswith(folder) for folder in granted), path


def test_no_broad_folder_is_code() -> None:
    granted = {os.path.realpath(path) for path in (*code.interpreter_paths(), *code.library_paths(sys.path))}
    assert not granted & {"/", "/etc", "/home", "/root", "/tmp", "/usr", "/var", os.path.expanduser("~"), os.getcwd()}


def test_import_path_leaves_out_the_script_and_what_is_not_there(tmp_path: Path) -> None:
    kept = sys.path[:], sys.argv[:]
    try:
        script, library = tmp_path / "bin", tmp_path / "library"
        for folder in (script, library):
            folder.mkdir()
        sys.path[:] = [str(script), "", "relative", str(library), str(tmp_path / "missing"), str(library)]
        sys.argv[:] = [str(script / "retinue")]
        expected = [str(script), str(library)] if sys.flags.safe_path else [str(library)]
        assert process.import_path() == expected
    finally:
        sys.path[:], sys.argv[:] = kept
