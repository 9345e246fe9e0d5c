"""The plain machine: a handler, no framework. It counts its visitors as long as it lives."""

from typing import Any

from retinue.pipes import Message
from retinue.svm import Machine


async def main(vm: Machine[None]) -> None:
    visits = 0

    async def visit(message: Message) -> dict[str, Any]:
        nonlocal visits
        visits += 1
        return {"status": 200, "headers": {"content-type": "text/plain"}, "body": f"visit {visits}\n"}

    await vm.serve(visit)
