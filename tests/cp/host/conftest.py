"""Real systems, see driving."""

from tests.cp.host.driving import start as start
