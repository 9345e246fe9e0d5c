"""The machine that speaks HTTP/1.1: bytes of clients in, requests to applications' machines out.

====================  =============================================================================================
config.routes         ``{ "/" = "app", "/api" = "api" }``: path prefix -> local name of an edge
config.*              limits of size and time, :class:`Config`; all are in ``docs/reference/httpd.md``
edges used            every edge that ``routes`` names; the machine at its end answers ``http`` calls
edges provided        byte streams that begin with ``tcp.open``, as TCPIP makes them
====================  =============================================================================================
"""

import trio

from retinue.services.httpd.config import Config as Config
from retinue.services.httpd.routes import Routes
from retinue.services.httpd.service import Service
from retinue.svm import Machine


async def main(vm: Machine[Config]) -> None:
    """Serve every client that connects until told to stop; then let requests under way finish for ``drain_time``.

    Raises :exc:`~retinue.services.httpd.errors.BadRoute`.
    """
    routes = Routes(vm.config.routes, vm.edges)
    async with trio.open_nursery() as gateways:
        service = Service(vm, routes, gateways)
        async with trio.open_nursery() as clients:
            incoming = vm.listen()
            await vm.ready()
            async for path in incoming:
                clients.start_soon(service.serve_client, path)
            service.stop()
            clients.cancel_scope.deadline = trio.current_time() + vm.config.drain_time
        gateways.cancel_scope.cancel()
