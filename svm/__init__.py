"""What a service program sees from inside its machine.

A program is a module with ``async def main(vm: Machine[Config]) -> None`` and, when it has settings, an attrs class
``Config``. ``logging`` and ``print`` go to ``*LOG``.
"""

from retinue.svm.errors import ConnectRefused as ConnectRefused
from retinue.svm.errors import EdgeNotDeclared as EdgeNotDeclared
from retinue.svm.errors import NoSuchDisk as NoSuchDisk
from retinue.svm.machine import Machine as Machine

__all__ = ["ConnectRefused", "EdgeNotDeclared", "Machine", "NoSuchDisk"]
