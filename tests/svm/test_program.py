"""Finding the program of a machine."""

import pathlib
from collections.abc import Callable

import pytest

from retinue.svm import program
from retinue.svm.errors import ProgramError

Write = Callable[[str], str]


@pytest.fixture
def write(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Write:
    """Makes a module of its text; returns its name, which no other test has."""
    monkeypatch.syspath_prepend(str(tmp_path))
    count = 0

    def make(text: str) -> str:
        nonlocal count
        count += 1
        name = f"program_{abs(hash(request.node.nodeid))}_{count}"
        (tmp_path / f"{name}.py").write_text(text)
        return name

    return make


GOOD = "import attrs\n@attrs.frozen\nclass Config:\n    x: int = 1\nasync def main(vm): pass\n"


def test_module_with_main_and_config(write: Write) -> None:
    """Both are found by their names."""
    name = write(GOOD)
    found = program.load("program", name)
    assert found.name == name
    assert found.main.__name__ == "main"
    assert found.config_class is not None
    assert found.config_class.__name__ == "Config"


def test_module_without_config(write: Write) -> None:
    """A program need not have settings."""
    assert program.load("program", write("async def main(vm): pass\n")).config_class is None


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("x = 1\n", "has no  async def main"),
        ("def main(vm): pass\n", "has no  async def main"),
        ("main = 5\n", "has no  async def main"),
        ("async def main(vm): pass\nConfig = 5\n", "Config is not an attrs class"),
        ("async def main(vm): pass\nclass Config: pass\n", "Config is not an attrs class"),
        ("import no_such_module_at_all\n", "No module named 'no_such_module_at_all'"),
        ("def broken(:\n", "SyntaxError"),
        ("1 / 0\n", "ZeroDivisionError"),
        ("raise SystemExit(0)\n", "SystemExit"),
        ("raise KeyboardInterrupt\n", "KeyboardInterrupt"),
        ("raise BaseException('odd')\n", "odd"),
    ],
)
def test_module_that_cannot_be_run(write: Write, text: str, told: str) -> None:
    """Whatever is wrong with it, it is a ProgramError that says what and in which module."""
    name = write(text)
    with pytest.raises(ProgramError) as caught:
        program.load("program", name)
    assert told in caught.value.text
    assert name in caught.value.text


def test_module_that_is_not_there() -> None:
    """Named, without the frames of the import machinery."""
    with pytest.raises(ProgramError) as caught:
        program.load("program", "no.such.program")
    assert "cannot import no.such.program" in caught.value.text
    assert "importlib" not in caught.value.text


def test_traceback_shows_the_programs_own_lines(write: Write) -> None:
    """And nothing of ours."""
    name = write("def helper():\n    raise ValueError('mine')\nhelper()\n")
    with pytest.raises(ProgramError) as caught:
        program.load("program", name)
    assert "helper()" in caught.value.text
    assert "raise ValueError('mine')" in caught.value.text
    assert "svm/program.py" not in caught.value.text


def test_asgi_application_by_module_and_attribute(write: Write) -> None:
    """The attribute may be a path of attributes; the program then has no Config."""
    name = write("class Site:\n    @staticmethod\n    async def app(scope, receive, send): pass\n")
    found = program.load("asgi", f"{name}:Site.app")
    assert found.name == f"{name}:Site.app"
    assert found.config_class is None


@pytest.mark.parametrize("attribute", ["other", "x", "app.deeper", ""])
def test_asgi_application_that_is_not_there(write: Write, attribute: str) -> None:
    """Neither missing nor uncallable things are applications."""
    name = write("x = 5\nasync def app(scope, receive, send): pass\n")
    with pytest.raises(ProgramError, match="has no ASGI application"):
        program.load("asgi", f"{name}:{attribute}")


def test_wsgi_application(write: Write) -> None:
    """Found by its attribute, dotted or not; it needs no class of settings."""
    name = write("class Site:\n    def app(self, environ, start_response): ...\nsite = Site()\n")
    found = program.load("wsgi", f"{name}:site.app", {"threads": 3})
    assert found.config_class is None
    with pytest.raises(ProgramError, match=f"{name} has no WSGI application 'other'"):
        program.load("wsgi", f"{name}:other")


def test_native_program() -> None:
    """Found in the folders of programs, whatever PATH says; nothing is imported."""
    arguments = {"name": "A", "command": ["true", "{disks.a}"], "edges": {}, "disks": {"a": "/a"}}
    assert program.load("exec", "true", arguments).config_class is None
    with pytest.raises(ProgramError, match="no program nonsense"):
        program.load("exec", "nonsense", arguments | {"command": ["nonsense"]})
