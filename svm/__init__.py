"""What a service program sees from inside its machine.

A program is a module with ``async def main(vm: Machine[Config]) -> None`` and, when it has settings, an attrs class
``Config``. ``logging`` and ``print`` go to ``*LOG``.
"""

from retinue.pipes.traces import new_trace as new_trace
from retinue.pipes.traces import trace as trace
from retinue.pipes.traces import tracing as tracing
from retinue.svm.errors import BadDestination as BadDestination
from retinue.svm.errors import ConfigError as ConfigError
from retinue.svm.errors import ConfigMistake as ConfigMistake
from retinue.svm.errors import ConnectRefused as ConnectRefused
from retinue.svm.errors import EdgeNotDeclared as EdgeNotDeclared
from retinue.svm.errors import NoSuchDisk as NoSuchDisk
from retinue.svm.errors import NoSuchSecret as NoSuchSecret
from retinue.svm.errors import OutsideFailed as OutsideFailed
from retinue.svm.fan import Fan as Fan
from retinue.svm.machine import Machine as Machine
from retinue.svm.outside import Datagrams as Datagrams
from retinue.svm.outside import OutsideStream as OutsideStream
from retinue.svm.outside import UnixDatagrams as UnixDatagrams
from retinue.svm.outside import dial as dial
from retinue.svm.outside import dial_unix as dial_unix
from retinue.svm.outside import open_datagrams as open_datagrams
from retinue.svm.outside import open_unix_datagrams as open_unix_datagrams
from retinue.svm.segment import Segment as Segment

__all__ = [
    "BadDestination",
    "ConfigError",
    "ConfigMistake",
    "ConnectRefused",
    "Datagrams",
    "EdgeNotDeclared",
    "Fan",
    "Machine",
    "NoSuchDisk",
    "OutsideFailed",
    "OutsideStream",
    "Segment",
    "UnixDatagrams",
    "dial",
    "dial_unix",
    "new_trace",
    "open_datagrams",
    "open_unix_datagrams",
    "trace",
    "tracing",
]
