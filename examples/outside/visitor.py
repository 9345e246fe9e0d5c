"""Asks each of its places for a page and prints the first line of the answer, or why there is none."""

import attrs

from retinue.pipes import AccessDenied
from retinue.svm import BadDestination, Machine, OutsideFailed, dial


@attrs.frozen
class Config:
    places: list[str]


async def visit(vm: Machine[Config], host: str, port: int) -> str:
    async with await dial(vm, "net", host, port) as stream:
        await stream.send_all(f"GET / HTTP/1.0\r\nHost: {host}\r\n\r\n".encode())
        page = b"".join([piece async for piece in stream])
    return page.partition(b"\r\n")[0].decode("ascii", "replace")


async def main(vm: Machine[Config]) -> None:
    for place in vm.config.places:
        host, _, port = place.rpartition(":")
        try:
            print(f"{place}: {await visit(vm, host, int(port))}")
        except (AccessDenied, OutsideFailed, BadDestination) as exc:
            print(f"{place}: {type(exc).__name__}: {exc}")
    await vm.ready()
    await vm.stopping.wait()
