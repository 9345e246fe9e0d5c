"""Records that a test gives to a store."""

from collections.abc import Iterable
from typing import Any

from retinue.services.syslog import Store, chunks_of

Record = dict[str, Any]


def record(seq: int, machine: str = "M", **more: Any) -> Record:
    return {
        "seq": seq,
        "time": 1.5,
        "machine": machine,
        "generation": 1,
        "severity": 6,
        "logger": "x",
        "message": f"message {seq}",
        "fields": {},
    } | more


def add(store: Store, run: str, records: Iterable[Record]) -> None:
    store.add(run, chunks_of([*records]))
