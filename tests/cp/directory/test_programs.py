"""How programs are found and judged without running them."""

import os
import pathlib
import py_compile
import subprocess
import sys
import zipfile

import pytest

from retinue.cp.directory import Directory, DirectoryErrors, MachineEntry, System, code_folders, load
from retinue.cp.directory.bindings import bindings
from retinue.cp.directory.programs import ALREADY_IMPORTED, Found, Problem, broad, check, find

EXPLODES = "raise SystemExit('this file was executed')\n"


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    folder = tmp_path.resolve() / "shop"
    folder.mkdir()
    return folder


def write(path: pathlib.Path, text: str = EXPLODES) -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_find_looks_beside_the_topology_and_runs_nothing(folder: pathlib.Path) -> None:
    module = write(folder / "shop.py")
    package = write(folder / "store" / "__init__.py")
    inner = write(folder / "store" / "deep" / "till.py")
    write(folder / "store" / "deep" / "__init__.py")
    assert find("shop", folder) == Found(module, beside=True)
    assert find("store", folder) == Found(package, beside=True)
    assert find("store.deep.till", folder) == Found(inner, beside=True)


def test_find_goes_through_folders_without_init(folder: pathlib.Path) -> None:
    inner = write(folder / "a" / "b" / "c" / "till.py")
    assert find("a.b.c.till", folder) == Found(inner, beside=True)
    assert find("a.b.c", folder) == Problem(
        "'a.b.c' is a folder without an __init__.py, so there is no code in it", "did you mean 'a.b.c.till'?"
    )


def test_find_prefers_an_installed_package_to_a_folder_without_init(folder: pathlib.Path) -> None:
    """As Python does; or a folder that is called retinue would hide all stock services."""
    (folder / "trio").mkdir()
    found = find("trio", folder)
    assert isinstance(found, Found)
    assert not found.beside


def test_find_falls_back_to_installed_modules(folder: pathlib.Path) -> None:
    found = find("email.mime.text", folder)
    assert isinstance(found, Found)
    assert found.source is not None
    assert found.source.name == "text.py"
    assert not found.beside


def test_find_ignores_the_folder_one_happens_to_stand_in(
    folder: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "here.py")
    monkeypatch.chdir(tmp_path)
    for entry in ("", "."):
        monkeypatch.syspath_prepend(entry)
    assert isinstance(find("here", folder), Problem)


def test_find_sees_modules_that_are_not_source(
    folder: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They cannot be looked into, and so they are taken as they are."""
    write(folder / "compiled.py", "x = 1\n")
    py_compile.compile(str(folder / "compiled.py"), cfile=str(folder / "compiled.pyc"))
    (folder / "compiled.py").unlink()
    assert find("compiled", folder) == Found(None, beside=True)
    with zipfile.ZipFile(tmp_path / "packed.zip", "w") as archive:
        archive.writestr("packed.py", "x = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path / "packed.zip"))
    assert find("packed", folder) == Found(None, beside=False)
    assert check("program", "compiled", folder) is None


def test_find_sees_a_file_that_was_written_a_moment_ago(folder: pathlib.Path) -> None:
    for number in range(20):
        assert isinstance(find(f"new{number}", folder), Problem)
        write(folder / f"new{number}.py")
        assert isinstance(find(f"new{number}", folder), Found)


@pytest.mark.parametrize(
    ("source", "fits"),
    [
        ("async def main(vm): ...", True),
        ("from elsewhere import main", True),
        ("from elsewhere import run as main", True),
        ("import main", True),
        ("main = make()", True),
        ("main: object = make()", True),
        ("def main(vm): ...\nmain = wrap(main)", True),
        ("@wrap\ndef main(vm): ...", True),
        ("try:\n async def main(vm): ...\nexcept ImportError:\n pass", True),
        ("if True:\n def main(vm): ...\nelse:\n async def main(vm): ...", True),
        ("from elsewhere import *", True),
        ("def __getattr__(name): ...", True),
        ("globals()['ma' + 'in'] = 1", True),
        ("def set():\n global main\n main = 1", True),
        ("(x, *(main, y)) = z", True),
        ("with x as main: ...", True),
        ("for main in x: ...", True),
        ("[(main := y) for y in x]", True),
        ("match x:\n case {'a': [*main]}: ...", True),
        ("def main(vm): ...", False),
        ("", False),
        ("main: object", False),
        ("class Program:\n async def main(vm): ...", False),
        ("def program():\n main = 1", False),
        ("[main for main in x]", False),
        ("x = lambda: (main := 1)", False),
        ("print(main)", False),
        ("from main import x", False),
    ],
)
def test_check_demands_a_main_that_may_be_asynchronous(folder: pathlib.Path, source: str, fits: bool) -> None:
    write(folder / "worker.py", source)
    assert (check("program", "worker", folder) is None) == fits


def test_check_says_what_is_wrong_with_a_main(folder: pathlib.Path) -> None:
    write(folder / "worker.py", "def main(vm): ...")
    problem = check("program", "worker", folder)
    assert problem is not None
    assert problem.message == "main in the module 'worker' is not asynchronous"


def test_check_demands_the_attribute_of_an_application(folder: pathlib.Path) -> None:
    write(folder / "worker.py", "def app(scope, receive, send): ...\nclass Api: ...")
    assert check("asgi", "worker:app", folder) is None
    assert check("asgi", "worker:Api", folder) is None
    assert check("asgi", "worker:api", folder) == Problem("the module 'worker' has no 'api'", "did you mean 'Api'?")
    assert check("asgi", "worker:zzz", folder) == Problem("the module 'worker' has no 'zzz'")


@pytest.mark.parametrize(
    "source", [b"async def main(vm)\n", b"x = 1\0", b"# coding: klingon\n", b"\xff = 1", b"(" * 10_000]
)
def test_check_tells_of_a_program_that_is_not_python(folder: pathlib.Path, source: bytes) -> None:
    (folder / "worker.py").write_bytes(source)
    problem = check("program", "worker", folder)
    assert problem is not None
    assert problem.message.startswith(f"the program is not valid Python: {folder}/worker.py:1: ")


def test_bindings_are_read_without_warnings_about_style() -> None:
    assert bindings(b"main = '\\d' is 1\n", "worker.py").names == {"main"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_check_tells_of_a_program_that_cannot_be_read(folder: pathlib.Path) -> None:
    write(folder / "worker.py").chmod(0)
    assert check("program", "worker", folder) == Problem(
        f"cannot read the program {folder}/worker.py: Permission denied"
    )


def test_check_refuses_a_program_that_a_machine_would_not_reach(folder: pathlib.Path) -> None:
    """A machine has these modules before it looks for its program, and would run the wrong one."""
    for name in ("code", "retinue", "quux"):
        write(folder / f"{name}.py", "async def main(vm): ...")
    assert check("program", "quux", folder) is None
    assert check("program", "code", folder) == Problem(
        "'code' beside the topology has the name of a module of the standard library",
        "give the program another name",
    )
    for name, preload in (("retinue", ()), ("quux", ("quux.tables",))):
        assert check("program", name, folder, preload) == Problem(
            f"'{name}' beside the topology has the name of a module that every machine has already",
            "give the program another name",
        )


def test_modules_that_every_machine_has_already_are_known() -> None:
    """``ALREADY_IMPORTED`` has all that an interpreter has more of once it has imported what machines are made of."""
    script = """
import sys
before = set(sys.modules)
import attr, attrs, cattrs, msgpack, retinue.pipes, retinue.svm, trio
for name in sorted({name.partition(".")[0] for name in set(sys.modules) - before} - sys.stdlib_module_names):
    if sys.modules[name].__spec__ and not name.startswith("_"):
        print(name)
"""
    run = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, text=True, check=True)
    assert set(run.stdout.split()) <= ALREADY_IMPORTED


def test_code_folders_are_those_of_programs_that_lie_beside_the_topology(folder: pathlib.Path) -> None:
    write(folder / "worker.py")
    local = MachineEntry("LOCAL", "program", "worker")
    stock = MachineEntry("STOCK", "program", "email.message")
    both = Directory(folder / "shop.toml", System("SHOP"), (stock, local))
    assert code_folders(both) == (str(folder),)
    assert code_folders(both, local) == (str(folder),)
    assert code_folders(both, stock) == ()
    assert code_folders(Directory(folder / "shop.toml", System("SHOP"), (stock,))) == ()


def topology(folder: pathlib.Path, *programs: str) -> pathlib.Path:
    text = '[system]\nname = "SHOP"\n'
    for number, program in enumerate(programs):
        text += f'[machines.M{number}]\nprogram = "{program}"\n'
    return write(folder / "shop.toml", text)


def test_program_in_a_home_directory_is_refused_once(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(folder / "worker.py", "async def main(vm): ...")
    path = topology(folder, "worker", "worker")
    assert len(load(path).machines) == 2
    monkeypatch.setenv("HOME", str(folder))
    with pytest.raises(DirectoryErrors) as caught:
        load(path)
    assert str(caught.value) == (
        f"{path}:4: [machines.M0] the program lies in {folder}, a home directory, and its machine may read "
        "all code in it - put the topology and its programs in a folder of their own"
    )


def test_topology_in_a_home_directory_is_fine_if_no_program_lies_there(
    folder: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "installed" / "installed_worker.py", "async def main(vm): ...")
    monkeypatch.syspath_prepend(str(tmp_path / "installed"))
    monkeypatch.setenv("HOME", str(folder))
    assert load(topology(folder, "installed_worker")).machines[0].program == "installed_worker"


def test_program_in_a_home_directory_is_refused_by_whatever_way_one_comes_there(
    folder: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(folder / "worker.py", "async def main(vm): ...")
    topology(folder, "worker")
    os.symlink(folder, tmp_path / "link")
    os.symlink(folder, tmp_path / "home")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with pytest.raises(DirectoryErrors, match="a home directory"):
        load(tmp_path / "link" / "shop.toml")


@pytest.mark.parametrize("path", ["/", "/tmp", "/etc", "/root", "/var", "/usr", "/usr/lib", "/home", "/var/tmp"])
def test_folders_that_many_share_are_broad(path: str) -> None:
    assert broad(pathlib.Path(os.path.realpath(path))) is not None


def test_broad_folders_are_homes_what_is_above_them_and_places_for_temporary_files(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path = tmp_path.resolve()
    home, temporary = tmp_path / "users" / "ann", tmp_path / "temporary"
    home.mkdir(parents=True)
    temporary.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("TMPDIR", str(temporary))
    assert broad(home) == "a home directory"
    assert broad(tmp_path / "users") == "a folder with home directories in it"
    assert broad(temporary) == "a folder that many programs share"
    assert broad(home / "shop") is None
    assert broad(temporary / "shop") is None
