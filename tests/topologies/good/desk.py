"""A program for the correct topologies of this folder. It is found and read, never run."""


async def main(vm: object) -> None:
    """Do nothing."""
