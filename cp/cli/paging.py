"""Asking for records page by page: an answer is bounded, and what is asked for is not."""

from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any, Final, Protocol

from retinue.cp.cli.output import neutralise, tell
from retinue.cp.cli.records import is_gap

# Records asked for at once: what arrives while it is printed.
PAGE: Final = 2_000
# Seconds a page may take. The machine that keeps the records may have to look at all of them.
PAGE_WAIT: Final = 30.0

Record = Mapping[str, Any]


class Ask(Protocol):
    """Whoever answers a query with a page, as the control program answers ``logs``."""

    async def __call__(self, **query: Any) -> Mapping[str, Any]: ...


class Pages:
    """The records that a query wants, and of these the ones that ``matches`` takes.

    With ``gaps`` in the query those are taken as well, and none of them counts as one of the last ones.
    """

    def __init__(self, ask: Ask, query: Mapping[str, Any], matches: Callable[[Record], bool]) -> None:
        self._answer = ask
        self._query = query
        self._gaps = bool(query.get("gaps"))
        self._matches = matches
        self._seq: int | None = None
        self._told = False

    async def _ask(self, **more: Any) -> Mapping[str, Any]:
        answer = await self._answer(**{**self._query, **more})
        if self._seq is None:
            self._seq = int(answer["seq"])
        if answer["kept"] is False and not self._told:
            self._told = True
            tell("-- the machine that keeps the records does not answer: this is what is in memory --")
        elif answer["spilled"] and not self._told:
            self._told = True
            names = neutralise(", ".join(map(str, answer["spilled"])))
            tell(f"-- records of {names} wait on the disk until they are stored; some may be missing here --")
        return answer

    async def place(self) -> int:
        """The number of the newest record there was when the first page was asked for."""
        if self._seq is None:
            await self._ask(count=0)
        return self._seq or 0

    async def all(self) -> AsyncGenerator[Record, None]:
        """From the oldest to the newest that there was at the beginning."""
        answer = await self._ask(oldest=True, count=PAGE)
        end = answer["end"]
        while True:
            for record in answer["records"]:
                if self._is_gap(record) or self._matches(record):
                    yield record
            if answer["more"] is None:
                return
            answer = await self._ask(oldest=True, count=PAGE, after=answer["more"], before=end)

    async def last(self, count: int) -> AsyncGenerator[Record, None]:
        """The newest ``count``, oldest first."""
        found: list[Record] = []
        before = None
        page = min(max(count, 100), PAGE)
        while count > 0:
            answer = await self._ask(count=page, before=before)
            page = min(page * 2, PAGE)  # few of them match
            for record in reversed(answer["records"]):
                gap = self._is_gap(record)
                if gap or self._matches(record):
                    found.append(record)
                    count -= not gap
                if not count:
                    break
            before = answer["more"]
            if before is None:
                break
        for record in reversed(found):
            yield record

    def _is_gap(self, record: Record) -> bool:
        return self._gaps and is_gap(record)
