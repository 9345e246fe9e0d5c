"""The states of a machine as the reference shows them, drawn from the table of the code.

``python -m retinue.cp.diagram`` prints what stands between the marks of ``docs/reference/life.md``; with that file as
its argument it puts it there.
"""

from typing import Final

from retinue.cp.states import TABLE, Happening, State
from retinue.pipes.diagram import draw, mermaid

_STATES: Final = {
    State.DEFINED: "the topology has it; it has never been started",
    State.DORMANT: "it has no process; the first who connects starts it",
    State.STARTING: "it has a process, or is about to have one",
    State.READY: "its program has said so: paths can be made to it",
    State.STOPPING: "its process was asked to end",
    State.STOPPED: "it has ended in order and stays so",
    State.ABEND: "its process has ended out of order; what comes next is being decided",
    State.WAITING: "it is started after a pause, or when there is room in real storage",
    State.BROKEN: "it has ended out of order and stays so, until an operator starts it",
}
_HAPPENINGS: Final = {
    Happening.START: "it is its turn",
    Happening.READY: "its program says that it can be used",
    Happening.REPLACE: "a successor, which is ready, has taken its place",
    Happening.REST: "it is started on demand, and nobody needs it",
    Happening.STOP: "its process is asked to end: by the operator, at the end of the system, to be started again",
    Happening.FINISH: "its process has ended as it should",
    Happening.DIE: "its process has ended otherwise",
    Happening.PAUSE: "it has died again within a short time, or there is no room in real storage",
    Happening.GIVE_UP: "its policy says never, or its budget of restarts or that of its group is spent",
}


def life() -> str:
    """Two Markdown tables and a Mermaid diagram."""
    rows = ["| state | meaning |", "|---|---|"]
    rows += [f"| `{state}` | {_STATES[state]} |" for state in State]
    rows += ["", "| what happens | meaning |", "|---|---|"]
    rows += [f"| {happening} | {_HAPPENINGS[happening]} |" for happening in Happening]
    arrows: dict[tuple[str, str], list[str]] = {}
    for (before, happening), after in TABLE.items():
        arrows.setdefault((before, after), []).append(happening)
    return "\n".join([*rows, "", *mermaid(State.DEFINED, arrows)])


SECTIONS: Final = {"life": life}


if __name__ == "__main__":
    draw(SECTIONS, "retinue.cp.diagram")
