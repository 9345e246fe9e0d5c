"""Asks to be greeted once and prints the answer."""

from retinue.svm import Machine


async def main(vm: Machine[None]) -> None:
    greeter = await vm.connect("greeter")
    print(await greeter.call("world"))
    await vm.ready()
    await vm.stopping.wait()
