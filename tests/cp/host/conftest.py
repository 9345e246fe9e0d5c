"""Real systems, see driving."""

from tests.cp.host.driving import shared as shared
from tests.cp.host.driving import shared_systems as shared_systems
from tests.cp.host.driving import start as start
