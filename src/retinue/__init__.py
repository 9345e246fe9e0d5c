"""Retinue: a control program and its retinue of sealed service machines.

Programs that run inside a machine start from :mod:`retinue.svm`; everything else is reached through the
``retinue`` command.
"""

__all__ = ["__version__"]

__version__: str


def __getattr__(name: str) -> str:
    # Only when it is asked for: reading the metadata takes as long as starting an interpreter, and every process of a
    # system imports this package.
    if name == "__version__":
        from importlib.metadata import version

        return version("retinue")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
