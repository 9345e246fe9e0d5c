"""Which edge answers which path: the longest prefix wins, and a prefix ends where a path segment ends."""

from collections.abc import Iterable, Mapping

from retinue.services.httpd.errors import BadRoute


class Routes:
    """The table of ``config.routes``.

    ``"/"`` matches every path; ``"/api"`` matches ``/api`` and ``/api/...`` but not ``/apix``; a trailing slash of a
    prefix means nothing (``"/api/"`` is ``"/api"``). Matched is the decoded path, as the application sees it.
    """

    def __init__(self, routes: Mapping[str, str], edges: Iterable[str]) -> None:
        """Raises :exc:`BadRoute` for a prefix that is no path, is there twice, or leads to an edge not in ``edges``."""
        known = tuple(edges)
        self._table: dict[str, str] = {}
        for prefix, edge in routes.items():
            if not prefix.startswith("/") or "?" in prefix or "#" in prefix or "//" in prefix:
                raise BadRoute(prefix, edge, 'a prefix is a path such as "/" or "/api"')
            if edge not in known:
                text = f"no such edge (there are: {', '.join(sorted(known)) or 'none'}); declare it: uses.{edge} = ..."
                raise BadRoute(prefix, edge, text)
            key = prefix.rstrip("/")
            if key in self._table:
                raise BadRoute(prefix, edge, "the same prefix is there twice")
            self._table[key] = edge

    @property
    def edges(self) -> tuple[str, ...]:
        """The edges that routes lead to, each once."""
        return tuple(dict.fromkeys(self._table.values()))

    def find(self, path: str) -> str | None:
        """The edge for a decoded path, or None."""
        table = self._table
        if len(table) == 1 and "" in table:
            return table[""]
        end = len(path)
        while end > 0:
            edge = table.get(path[:end])
            if edge is not None:
                return edge
            end = path.rfind("/", 0, end)
        return table.get("") if path.startswith("/") else None
