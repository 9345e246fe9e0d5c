"""The doors of the house: which module may import which, read from the source, not from what happens to run."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import pytest

ROOT: Final = Path(__file__).parents[1]
LAYERS: Final = ("pipes", "svm", "cp", "services")
# What each part of the house may import of ours, beside itself and the version in retinue/__init__.py.
DOORS: Final = {
    "pipes": (),
    "svm": ("pipes",),
    "cp": ("pipes",),
    "services": ("svm", "pipes"),
    "examples": ("svm", "pipes"),
}
# What every import has in it that is relative or bare: a file without it need not be parsed.
SUSPICIOUS: Final = re.compile(rf"\bfrom\s*(\.|({'|'.join(LAYERS)})\b)|\bimport\s[^\n]*\b({'|'.join(LAYERS)})\b")
# At 500 lines a module has become two.
LONGEST: Final = 500


class Import(NamedTuple):
    """One imported name: ``late`` inside a function, ``typing`` only for type checkers."""

    name: str
    line: int
    late: bool
    typing: bool


def _imports(tree: ast.AST, *, late: bool = False, typing: bool = False) -> Iterator[Import]:
    for node in ast.iter_child_nodes(tree):
        match node:
            case ast.expr():
                pass  # an import is a statement, and no expression has one in it
            case ast.Import():
                for alias in node.names:
                    yield Import(alias.name, node.lineno, late, typing)
            case ast.ImportFrom(module=module, level=level):
                for alias in node.names:
                    yield Import("." * level + f"{module or ''}.{alias.name}", node.lineno, late, typing)
            case ast.If(test=ast.Name(id="TYPE_CHECKING"), body=body, orelse=orelse):
                for each in body:
                    yield from _imports(ast.Module([each], []), late=late, typing=True)
                for each in orelse:
                    yield from _imports(ast.Module([each], []), late=late, typing=typing)
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                yield from _imports(node, late=True, typing=typing)
            case _:
                yield from _imports(node, late=late, typing=typing)


def _module_name(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(("retinue", *parts)).removesuffix(".__init__")


FILES: Final = {_module_name(file): file for layer in LAYERS for file in sorted((ROOT / layer).rglob("*.py"))}
IMPORTS: Final = {name: tuple(_imports(ast.parse(file.read_text()))) for name, file in FILES.items()}
EXAMPLES: Final = sorted((ROOT / "examples").rglob("*.py"))


def _where(file: Path, found: Import) -> str:
    return f"{file.relative_to(ROOT)}:{found.line} imports {found.name}"


def _module_of(name: str) -> str:
    """The module that ``from module import name`` (written as one name) gets something out of."""
    return name if name in FILES else name.rpartition(".")[0]


def _behind_closed_doors(layer: str, file: Path, imports: Iterator[Import] | tuple[Import, ...]) -> list[str]:
    own = () if layer == "examples" else (layer,)
    allowed = ["retinue.__version__", *(f"retinue.{each}" for each in (*own, *DOORS[layer]))]
    ours = [found for found in imports if found.name.partition(".")[0] == "retinue"]
    return [_where(file, found) for found in ours if not any(_inside(found.name, each) for each in allowed)]


def _inside(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def _is_standard(name: str) -> bool:
    return name.partition(".")[0] in sys.stdlib_module_names


def _closure(*roots: str) -> set[str]:
    """These modules and those of ours that they import, however late."""
    found: set[str] = set()
    waiting = list(roots)
    while waiting:
        name = waiting.pop()
        if name in FILES and name not in found:
            found.add(name)
            waiting += [_module_of(each.name) for each in IMPORTS[name] if not each.typing]
    return found


def test_every_layer_is_read() -> None:
    """The other tests look at real modules: each layer has some, and they import something."""
    for layer in LAYERS:
        assert any(_inside(name, f"retinue.{layer}") and IMPORTS[name] for name in FILES), layer
    assert EXAMPLES


@pytest.mark.parametrize("layer", LAYERS)
def test_a_layer_imports_only_through_its_doors(layer: str) -> None:
    """pipes nothing of ours; svm pipes; cp pipes; services svm and pipes: also in functions and for types."""
    wrong: list[str] = []
    for name, file in FILES.items():
        if _inside(name, f"retinue.{layer}"):
            wrong += _behind_closed_doors(layer, file, IMPORTS[name])
    assert not wrong


def test_examples_import_what_a_program_may() -> None:
    """An example needs nothing but retinue.svm and retinue.pipes."""
    wrong: list[str] = []
    for file in EXAMPLES:
        wrong += _behind_closed_doors("examples", file, _imports(ast.parse(file.read_text())))
    assert not wrong


def test_svm_is_named_by_the_saved_system_alone() -> None:
    """cp/host boots a machine by the name of its entry, in the child, and cp/simulation beside itself; nobody else."""
    named = set()
    for name, file in FILES.items():
        if _inside(name, "retinue.cp") and "retinue.svm" in (source := file.read_text()):
            strings = (node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant))
            # A text with a space in it is a docstring or a message.
            if any(isinstance(text, str) and " " not in text and text.startswith("retinue.svm") for text in strings):
                named.add(name)
    assert named <= {"retinue.cp.host.saved", "retinue.cp.simulation.machine"}


def test_imports_are_absolute_and_never_bare() -> None:
    """``from retinue.pipes import ...``, never ``import pipes``, which is somebody else's, and nothing relative."""
    wrong = []
    for file in [*FILES.values(), *sorted((ROOT / "tests").rglob("*.py")), *EXAMPLES]:
        source = file.read_text()
        for found in _imports(ast.parse(source)) if SUSPICIOUS.search(source) else ():
            if found.name.partition(".")[0] in ("", *LAYERS):
                wrong.append(_where(file, found))
    assert not wrong


def test_no_module_imports_itself_in_a_circle() -> None:
    """What a module imports when it is imported makes no circle. An import in a function may close one: it waits."""
    uses = {
        name: {_module_of(found.name) for found in imports if not found.late and not found.typing} & FILES.keys()
        for name, imports in IMPORTS.items()
    }
    waiting = {name: others - {name} for name, others in uses.items()}
    while leaves := [name for name, others in waiting.items() if not others & waiting.keys()]:
        for name in leaves:
            del waiting[name]
    assert not waiting, f"a circle, or what leads into one: {', '.join(sorted(waiting))}"


@pytest.mark.parametrize("module", ["retinue.pipes.wire", "retinue.pipes.session"])
def test_the_protocol_does_no_io(module: str) -> None:
    """Wire and session, with what they import of ours, know neither trio nor the operating system."""
    reached = {found.name.partition(".")[0] for name in _closure(module) for found in IMPORTS[name]}
    assert not reached & {"trio", "os", "socket", "select", "fcntl", "mmap", "subprocess", "asyncio"}


def test_the_nucleus_imports_the_standard_library_alone() -> None:
    """The process that must not die, and the saved system until it stands in its namespaces, need no library."""
    nucleus = _closure("retinue.cp.host.nucleus", "retinue.cp", "retinue.cp.host")
    assert {"retinue.cp.host.nucleus", "retinue.cp.host.saved", "retinue.cp.host.seal"} <= nucleus
    face = ROOT / "src" / "retinue" / "__init__.py"
    wrong = [_where(face, found) for found in _imports(ast.parse(face.read_text())) if not _is_standard(found.name)]
    for name in nucleus:
        for found in IMPORTS[name]:
            # _warm_up of the saved system imports trio on purpose, inside a function, when it has its namespaces.
            if found.typing or (found.late and name == "retinue.cp.host.saved"):
                continue
            if not _is_standard(found.name) and not _inside(found.name, "retinue.cp.host"):
                wrong.append(_where(FILES[name], found))
    assert not wrong


def test_modules_are_rooms_not_halls() -> None:
    """No module is longer than LONGEST lines."""
    lengths = {name: len(file.read_text().splitlines()) for name, file in FILES.items()}
    assert {name: length for name, length in lengths.items() if length > LONGEST} == {}
