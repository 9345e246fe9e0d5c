"""The documentation: links lead somewhere, examples are well formed, tables agree with the code."""

import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from retinue.cp import diagram as life_diagram
from retinue.cp import states
from retinue.cp.directory import load
from retinue.pipes import diagram, wire
from retinue.pipes import states as path_states

ROOT: Final = Path(__file__).parents[1]
DOCS: Final = ROOT / "docs"
PAGES: Final = sorted(
    [ROOT / "README.md", ROOT / "CHANGELOG.md", *DOCS.rglob("*.md"), *(ROOT / "examples").rglob("*.md")]
)
PARTS: Final = ("tutorials", "how-to", "reference", "explanation")

# What the README promises to work, to the letter.
RUN: Final = "python3 -m venv .venv && .venv/bin/pip install . && .venv/bin/retinue up examples/web/web.toml"
TEST: Final = "python3 -m venv .venv && .venv/bin/pip install -e '.[test]' && .venv/bin/pytest"

_FENCE: Final = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK: Final = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def _text(page: Path) -> str:
    """The page without its code blocks."""
    return _FENCE.sub("", page.read_text())


def _blocks(page: Path, language: str) -> Iterator[str]:
    for found, content in _FENCE.findall(page.read_text()):
        if found == language:
            yield content


def _anchors(page: Path) -> set[str]:
    """The fragments of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#{1,6} +(.+?) *$", _text(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def _name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def test_readme_has_the_two_commands_to_the_letter() -> None:
    """The two commands stand in the README, each on a line of its own, and .ci/run takes the second from there."""
    lines = (ROOT / "README.md").read_text().splitlines()
    assert lines.count(RUN) == 1
    assert lines.count(TEST) == 1


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_links_lead_somewhere(page: Path) -> None:
    """Every relative link of a page leads to a file or folder that is there, and its fragment to a heading."""
    broken = []
    for link in _LINK.findall(_text(page)):
        if re.match(r"[a-z]+:", link):
            continue
        target, _, fragment = link.partition("#")
        file = (page.parent / target).resolve() if target else page
        if not file.exists() or (fragment and file.suffix == ".md" and fragment not in _anchors(file)):
            broken.append(link)
    assert broken == []


def test_every_page_is_in_the_index() -> None:
    """docs/README.md links to every page of the documentation."""
    index = DOCS / "README.md"
    linked = {(DOCS / link.partition("#")[0]).resolve() for link in _LINK.findall(_text(index))}
    pages = {page for part in PARTS for page in (DOCS / part).rglob("*.md")}
    assert sorted(_name(page) for page in pages - linked) == []


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_examples_in_pages_are_well_formed(page: Path) -> None:
    """What a page calls Python, TOML or JSON is that."""
    for content in _blocks(page, "python"):
        compile(content, _name(page), "exec", dont_inherit=True)
    for content in _blocks(page, "toml"):
        tomllib.loads(content)
    for content in _blocks(page, "json"):
        json.loads(content)


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=_name)
def test_whole_systems_in_pages_are_accepted(page: Path, tmp_path: Path) -> None:
    """A topology in a tutorial or guide, with the programs that the page shows before it, passes every rule.

    A program's block begins with the comment ``# NAME.py`` or ``# FOLDER/NAME.py``.
    """
    for content in _blocks(page, "python"):
        if name := re.match(r"# ([\w/]+\.py)\n", content):
            file = tmp_path / name[1]
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(content)
    for number, content in enumerate(_blocks(page, "toml")):
        if "[system]" in content and page.parent.name in ("tutorials", "how-to"):
            topology = tmp_path / f"{number}.toml"
            topology.write_text(content)
            assert load(topology).machines


def test_words_of_the_glossary_are_in_order_and_defined_once() -> None:
    """One word, one entry, in alphabetical order, each with text."""
    page = (DOCS / "reference" / "glossary.md").read_text()
    words = [word.lower() for word in re.findall(r"^\| \*\*(.+?)\*\* \| \S", page, re.MULTILINE)]
    assert len(words) >= 40
    assert words == sorted(set(words))


@pytest.mark.parametrize(
    ("page", "sections", "module"),
    [
        ("wire.md", diagram.SECTIONS, "retinue.pipes.diagram"),
        ("life.md", life_diagram.SECTIONS, "retinue.cp.diagram"),
    ],
)
def test_states_in_the_reference_are_as_drawn_from_the_code(page: str, sections: diagram.Sections, module: str) -> None:
    """Tables and diagrams of states are what ``python -m`` makes of the tables of the code, to the letter."""
    text = (DOCS / "reference" / page).read_text()
    assert diagram.drawn_into(text, sections, module) == text


def test_no_transition_is_left_out() -> None:
    """The generator draws every row of the table of a machine's states."""
    drawn = {
        (source, label.strip(), target)
        for source, target, labels in re.findall(r"^ +(\w+) --> (\w+): (.+)$", life_diagram.life(), re.MULTILINE)
        for label in labels.split(",")
    }
    table = states.TABLE.items()
    assert drawn == {(source.value, happening.value, target.value) for (source, happening), target in table}


def test_what_a_state_takes_is_what_the_table_says() -> None:
    """The generator leaves out nothing that the table of a path's states has, and its reader finds it in the page."""
    page = (DOCS / "reference" / "wire.md").read_text()
    rows = re.findall(r"^\| `([A-Z]+)` \| [^|]* \| ([A-Z, ]+|nothing) \| ([A-Z, ]+|nothing) \|$", page, re.MULTILINE)
    takes = {state: _words(cell) for state, cell, _ in rows}
    sends = {state: _words(cell) for state, _, cell in rows}
    real: dict[str, set[str]] = {state.name: set() for state in path_states.State}
    for state, what in path_states.TABLE:
        if isinstance(what, wire.Kind):
            real[state.name].add(what.name)
    assert takes == real
    # What nobody may send nobody need take, and the other way round. (HELLO is a matter of the binding.)
    assert set().union(*takes.values()) - {"HELLO"} == set().union(*sends.values())


def test_drawing_needs_the_marks() -> None:
    """A page without the marks, or with one of them twice, is not quietly left as it is."""
    page = (DOCS / "reference" / "wire.md").read_text()
    for wrong in (page.replace("<!-- end -->", ""), page + page, ""):
        with pytest.raises(LookupError, match="has the marks of states"):
            diagram.drawn_into(wrong)


def test_bytes_in_the_wire_reference_are_those_of_the_frames() -> None:
    """Each example of a frame stands beside what MessagePack makes of it, and the code takes it."""
    page = (DOCS / "reference" / "wire.md").read_text()
    examples = re.findall(r"^(\[.*\]) {2,}((?:[0-9a-f]{2} ?)+)$", page, re.MULTILINE)
    assert len(examples) >= 5
    for frame, octets in examples:
        assert wire.Decoder().decode(bytes.fromhex(octets)) == [json.loads(frame)]
        assert wire.encode(json.loads(frame)).hex(" ") == octets


def test_limits_in_the_wire_reference_are_those_of_the_code() -> None:
    """Every limit and every kind of frame of wire.py stands in wire.md with its value, and no other."""
    page = (DOCS / "reference" / "wire.md").read_text()
    rows = re.findall(r"^\| `([A-Z_]+)` \| ([\d,]+) \|", page, re.MULTILINE)
    public = {name: value for name, value in vars(wire).items() if name.isupper() and not name.startswith("_")}
    limits = {name: value for name, value in public.items() if type(value) is int}
    assert {name: int(value.replace(",", "")) for name, value in rows} == limits
    kinds = re.findall(r"^\| (\d+) \| `([A-Z]+)` \|", page, re.MULTILINE)
    assert {name: int(number) for number, name in kinds} == {kind.name: int(kind) for kind in wire.Kind}


def _words(cell: str) -> set[str]:
    return set() if cell == "nothing" else set(cell.split(", "))


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=_name)
def test_tests_that_pages_name_exist(page: Path) -> None:
    """A promise that is tied to a test names one that is there."""
    missing = []
    for file, name in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", page.read_text()):
        source = ROOT / file
        if not source.is_file() or not re.search(rf"^(async )?def {name}\(", source.read_text(), re.MULTILINE):
            missing.append(f"{file}::{name}")
    assert missing == []
