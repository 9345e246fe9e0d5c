"""The states of a path as the reference shows them, drawn from the tables of the code.

``python -m retinue.pipes.diagram`` prints what stands between the marks of ``docs/reference/wire.md``; with that file
as its argument it puts it there.
"""

import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from retinue.pipes.states import BINDINGS, TABLE, Binding, Command, State
from retinue.pipes.wire import Kind

_STATES: Final = {
    State.OPENING: "the other end has never said `HELLO`; messages wait",
    State.OPEN: "messages pass",
    State.ASKED: "it has turned to a stream, the other end not yet",
    State.OFFERED: "the other end has turned to a stream, it has not yet",
    State.STREAM: "bytes pass",
    State.SEVERED: "nothing passes; what still arrives is thrown away",
}
_BINDINGS: Final = {
    Binding.UNBOUND: "there is no descriptor, or it has ended; what there is to write waits",
    Binding.GREETING: "its own `HELLO` is out, the other has not come",
    Binding.BOUND: "frames pass, as the state of the session allows",
    Binding.ENDED: "the path is severed",
}
# The frames that a command of the program becomes, where they are not called the same.
_FRAMES: Final = {
    Command.ANSWER: (Kind.REPLY, Kind.REJECT, Kind.ACK),
    Command.BYTES: (Kind.DATA, Kind.EOF),
    Command.QUIESCE: (Kind.QUIESCE, Kind.RESUME),
}
_NONE: Final = "nothing"


def frames_of(state: State) -> tuple[list[Kind], list[Kind]]:
    """What an end in this state takes from the other, and what it may send, by number."""
    takes = [what for before, what in TABLE if before is state and isinstance(what, Kind)]
    commands = [what for before, what in TABLE if before is state and isinstance(what, Command)]
    if Kind.HELLO in takes:  # what the program asks for before is told in HELLO or waits
        commands = [Command.SEVER]
    sends = [kind for what in commands for kind in _FRAMES.get(what) or (Kind[what.name],)]
    if Kind.QUIESCE in takes:
        sends.append(Kind.QUIESCED)
    return sorted(takes), sorted(sends)


def states() -> str:
    """The states of the session: a Markdown table and a Mermaid diagram."""
    rows = ["| state | meaning | takes | may send |", "|---|---|---|---|"]
    for state in State:
        takes, sends = (", ".join(kind.name for kind in kinds) or _NONE for kinds in frames_of(state))
        rows.append(f"| `{state.name}` | {_STATES[state]} | {takes} | {sends} |")
    arrows: dict[tuple[str, str], list[str]] = {}
    for (before, what), after in TABLE.items():
        if before is not after and after is not State.SEVERED:
            label = what.name if isinstance(what, Kind) else what.value
            arrows.setdefault((before.name, after.name), []).append(label)
    return "\n".join([*rows, "", *mermaid(next(iter(State)).name, arrows)])


def bindings() -> str:
    """The states of the binding, likewise."""
    rows = ["| state | meaning |", "|---|---|"]
    rows += [f"| `{binding.name}` | {_BINDINGS[binding]} |" for binding in Binding]
    arrows: dict[tuple[str, str], list[str]] = {}
    for (before, happening), after in BINDINGS.items():
        if before is not after:
            arrows.setdefault((before.name, after.name), []).append(happening.value)
    return "\n".join([*rows, "", *mermaid(next(iter(Binding)).name, arrows)])


def mermaid(first: str, arrows: Mapping[tuple[str, str], list[str]]) -> list[str]:
    """The lines of a diagram of states; ``arrows`` are what leads from one to another."""
    lines = [f"    {before} --> {after}: {', '.join(labels)}" for (before, after), labels in arrows.items()]
    return ["```mermaid", "stateDiagram-v2", f"    [*] --> {first}", *lines, "```"]


Sections = Mapping[str, Callable[[], str]]

SECTIONS: Final[Sections] = {"states": states, "bindings": bindings}


def drawn_into(page: str, sections: Sections = SECTIONS, module: str = "retinue.pipes.diagram") -> str:
    """The text of a page with every section between its marks, ``<!-- NAME ... -->`` and ``<!-- end -->``, drawn anew.

    LookupError when the page has not got the marks of each.
    """
    for name, section in sections.items():
        drawn = f"\n\n{section()}\n\n"
        mark = rf"(?<=^<!-- {name}: python -m {re.escape(module)} -->).*?(?=^<!-- end -->$)"
        page, found = re.subn(mark, drawn, page, flags=re.MULTILINE | re.DOTALL)
        if found != 1:
            raise LookupError(f"the page has the marks of {name} {found} times")
    return page


def draw(sections: Sections, module: str) -> None:
    """Print the sections, or put them into the pages that the command names."""
    for name in sys.argv[1:]:
        file = Path(name)
        file.write_text(drawn_into(file.read_text(), sections, module))
    if not sys.argv[1:]:
        print("\n\n".join(section() for section in sections.values()))


if __name__ == "__main__":
    draw(SECTIONS, "retinue.pipes.diagram")
