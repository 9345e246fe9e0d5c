"""The folders, the links that make them one import namespace, and the wheel that is built from them."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Final

import pytest

import retinue

ROOT: Final = Path(__file__).parents[1]
PACKAGES: Final = ("cp", "pipes", "services", "svm")
# A build of the wheel takes some seconds, most of it the start of pip and setuptools.
BUILD_SECONDS: Final = 300


def test_top_level_folders_are_there() -> None:
    """The house has its rooms, and the documentation its four parts."""
    rooms = (*PACKAGES, "examples", "tests", "docs", "benchmarks", "src/retinue")
    parts = ("docs/tutorials", "docs/how-to", "docs/reference", "docs/explanation")
    assert [name for name in (*rooms, *parts) if not (ROOT / name).is_dir()] == []
    files = ("README.md", "CHANGELOG.md", "LICENSE", "pyproject.toml", "src/retinue/py.typed", ".ci/run")
    assert [name for name in files if not (ROOT / name).is_file()] == []
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


@pytest.mark.parametrize("name", PACKAGES)
def test_namespace_is_made_of_relative_links(name: str) -> None:
    """src/retinue/NAME is a symbolic link to ../../NAME: relative, so that a clone anywhere has it."""
    link = ROOT / "src" / "retinue" / name
    assert link.is_symlink()
    assert os.readlink(link) == f"../../{name}"
    assert link.samefile(ROOT / name)


def test_every_folder_with_code_is_a_package() -> None:
    """A folder without __init__.py would be left out of the wheel without a word."""
    folders = {file.parent for name in PACKAGES for file in (ROOT / name).rglob("*.py")}
    assert sorted(folder for folder in folders if not (folder / "__init__.py").is_file()) == []


def test_nothing_of_ours_is_imported_under_a_bare_name() -> None:
    """A bare ``cp`` or ``pipes`` in sys.modules that is a file of ours would be a second copy of it."""
    files = {name: getattr(sys.modules.get(name), "__file__", None) for name in PACKAGES}
    assert [name for name, file in files.items() if file and Path(file).is_relative_to(ROOT)] == []


def has_backend() -> bool:
    """Whether this environment has the setuptools that pyproject.toml requires of a build."""
    required = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    assert [each.partition(">=")[0] for each in required] == ["setuptools"]
    try:
        found = importlib.metadata.version("setuptools")
    except importlib.metadata.PackageNotFoundError:
        return False
    return int(found.partition(".")[0]) >= int(required[0].partition(">=")[2])


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of a copy of the tree, for a build writes into its tree. pip fetches a backend if there is none."""
    folder = tmp_path_factory.mktemp("wheel")
    tree = folder / "tree"
    unwanted = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in (*PACKAGES, "src"):
        shutil.copytree(ROOT / name, tree / name, symlinks=True, ignore=unwanted)
    for name in ("pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copy(ROOT / name, tree / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps"]
    if has_backend():
        command.append("--no-build-isolation")
    command += [f"--wheel-dir={folder}", str(tree)]
    built = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_SECONDS, check=False)
    assert built.returncode == 0, built.stderr
    (found,) = folder.glob("*.whl")
    return found


def test_wheel_holds_plain_files_of_all_packages(wheel: Path) -> None:
    """Every module of the four folders is in the wheel as a file, with the marker for type checkers, and no link."""
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        links = [each.filename for each in archive.infolist() if (each.external_attr >> 16) & 0o170000 == 0o120000]
    modules = {f"retinue/{file.relative_to(ROOT)}" for name in PACKAGES for file in (ROOT / name).rglob("*.py")}
    assert modules - names == set()
    assert "retinue/py.typed" in names
    assert links == []
    assert {name.partition("/")[0] for name in names} == {"retinue", f"retinue-{retinue.__version__}.dist-info"}


def test_wheel_works_without_the_repository(wheel: Path, tmp_path: Path) -> None:
    """``import retinue`` and its version come from the wheel, in an interpreter that sees nothing else of ours."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    # -I -S: neither this environment's site-packages, nor the folder one stands in, nor PYTHONPATH.
    code = "import sys; sys.path.insert(0, sys.argv[1]); import retinue; print(retinue.__version__, retinue.__file__)"
    command = [sys.executable, "-I", "-S", "-c", code, str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=60, check=True)
    assert run.stdout.split() == [retinue.__version__, str(tmp_path / "retinue" / "__init__.py")]
