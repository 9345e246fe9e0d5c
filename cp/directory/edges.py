"""The edges of a machine: its table ``uses``."""

from typing import Final, cast, get_args

from retinue.cp.directory.model import LIMIT_DEFAULT, LIMIT_MAXIMUM, Edge, OnRestart, Overflow
from retinue.cp.directory.names import check_local_name, read_word
from retinue.cp.directory.table import Table, described, quoted

EDGE_KEYS: Final = ("to", "limit", "lazy", "on_restart", "overflow")

_TARGET_EXPECTED: Final = (
    'a machine or a star service, as in uses.app = "SHOP" or uses.app = { to = "SHOP", limit = 8 }'
)


def read_edges(machine: str, table: Table) -> tuple[Edge, ...]:
    """The edges of a machine, but for those that lead nowhere or to the machine itself."""
    edges = table.table("uses", None, f"a table of edges, each {_TARGET_EXPECTED}")
    if edges is None:
        return ()
    read = (_edge(machine, edges, name) for name in edges.values)
    return tuple(edge for edge in read if edge is not None)


def _edge(machine: str, edges: Table, name: str) -> Edge | None:
    check_local_name(edges, name, "an edge")
    if isinstance(edges.values[name], str):
        edge = Edge(name, edges.values[name])
    else:
        table = edges.table(name, EDGE_KEYS, _TARGET_EXPECTED)
        if table is None:
            return None
        to = table.value("to", str, 'the name of a machine or a star service such as "SHOP"')
        if not table.given("to"):
            table.wrong("to", "the edge leads nowhere", 'write to = "SHOP", the name of a machine')
        limit = table.value("limit", int, f"a number from 1 to {LIMIT_MAXIMUM}")
        if limit is not None and not 1 <= limit <= LIMIT_MAXIMUM:
            table.wrong("limit", f"limit is {described(limit)}, expected a number from 1 to {LIMIT_MAXIMUM}")
        lazy = table.value("lazy", bool, "true or false")
        on_restart = cast(OnRestart, read_word(table, "on_restart", get_args(OnRestart)) or "keep")
        overflow = cast(Overflow, read_word(table, "overflow", get_args(Overflow)) or "block")
        if to is None:
            return None
        edge = Edge(name, to, LIMIT_DEFAULT if limit is None else limit, lazy or False, on_restart, overflow)
        _check_policies(table, edge)
    if edge.to == machine:
        place = (*edges.path, name, "to")
        edges.mistakes.add(place, edges.path, f"{name}: a machine cannot use itself", "remove this edge")
        return None
    return edge


def _check_policies(table: Table, edge: Edge) -> None:
    for key in ("on_restart", "overflow") if edge.star else ():
        if key in table.values:
            message = f"{key} is for edges to machines, and {quoted(edge.to)} is the control program itself"
            table.wrong(key, message, "remove this key")
    if edge.on_restart == "restart" and edge.lazy:
        message = 'on_restart is "restart", which starts the machine after its target, and a lazy edge makes no order'
        table.wrong("on_restart", message, "remove one of the two")
