"""A program whose main is a plain function, which no machine can run."""


def main(vm: object) -> None:
    """Do nothing."""
