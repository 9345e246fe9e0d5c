"""Answers every name with a greeting."""

import attrs

from retinue.pipes import Message
from retinue.svm import Machine


@attrs.frozen
class Config:
    greeting: str = "Good day"


async def main(vm: Machine[Config]) -> None:
    async def greet(message: Message) -> str:
        return f"{vm.config.greeting}, {message.body}!"

    await vm.serve(greet)
