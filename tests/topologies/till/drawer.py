"""A program inside a package. It is found and read, never run."""


async def main(vm: object) -> None:
    """Do nothing."""
