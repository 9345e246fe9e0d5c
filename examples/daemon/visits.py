"""Counts its visitors in Redis, so that nothing of it is lost when this machine, or that one, is restarted."""

from typing import Any

from resp import Redis, Refused, Unavailable

from retinue.pipes import Message
from retinue.svm import Machine


async def main(vm: Machine[None]) -> None:
    redis = Redis(vm, "redis")

    async def visit(message: Message) -> Any:
        try:
            return f"visit {await redis.command('INCR', 'visits')}\n"
        except (Refused, Unavailable) as exc:
            return {"status": 503, "body": f"{exc}\n"}

    await vm.serve(visit)
