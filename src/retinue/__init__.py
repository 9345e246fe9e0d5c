"""Retinue: a control program and its retinue of sealed service machines.

Programs that run inside a machine start from :mod:`retinue.svm`; everything else is reached through the
``retinue`` command.
"""

from importlib.metadata import version as _version

__version__: str = _version("retinue")

__all__ = ["__version__"]
