"""The directory: the topology file as frozen values, its rules, its start order and its pictures."""

from retinue.cp.directory import graph as graph
from retinue.cp.directory.commands import executable as executable
from retinue.cp.directory.errors import DirectoryError as DirectoryError
from retinue.cp.directory.errors import DirectoryErrors as DirectoryErrors
from retinue.cp.directory.load import load as load
from retinue.cp.directory.model import Budget as Budget
from retinue.cp.directory.model import Directory as Directory
from retinue.cp.directory.model import Disk as Disk
from retinue.cp.directory.model import Edge as Edge
from retinue.cp.directory.model import Group as Group
from retinue.cp.directory.model import LinkedDisk as LinkedDisk
from retinue.cp.directory.model import MachineEntry as MachineEntry
from retinue.cp.directory.model import PagingVolume as PagingVolume
from retinue.cp.directory.model import Pause as Pause
from retinue.cp.directory.model import Secret as Secret
from retinue.cp.directory.model import SocketEntry as SocketEntry
from retinue.cp.directory.model import System as System
from retinue.cp.directory.order import start_order as start_order
from retinue.cp.directory.positions import Positions as Positions
from retinue.cp.directory.programs import code_folders as code_folders
