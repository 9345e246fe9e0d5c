"""The machine that speaks HTTP/1.1: bytes of clients in, requests to applications' machines out.

====================  =============================================================================================
config.routes         ``{ "/" = "app", "/api" = "api" }``: path prefix -> local name of an edge
config.*              limits of size and time, :class:`Config`; all are in ``docs/reference/httpd.md``
edges used            every edge that ``routes`` names; the machine at its end answers ``http`` calls
edges provided        connections that begin with ``tcp.open``, as TCPIP makes them; resumable ones go on with a
                      successor of this machine
====================  =============================================================================================
"""

import trio

from retinue.services.httpd.config import Config as Config
from retinue.services.httpd.service import Service
from retinue.svm import Machine


async def main(vm: Machine[Config]) -> None:
    """Serve every client that connects until told to stop; then let requests under way finish for ``drain_time``.

    In a drain they go on as long as the control program lets them, and all others go to the successor.

    Raises :exc:`~retinue.services.httpd.errors.BadRoute`.
    """
    async with trio.open_nursery() as gateways:
        service = Service(vm, gateways)
        vm.on_reload(service.reload)
        async with trio.open_nursery() as clients:
            incoming = vm.listen()
            gateways.start_soon(service.wait_draining)
            await vm.ready()
            async for path in incoming:
                clients.start_soon(service.serve_client, path)
            service.stop()
            if not vm.draining.is_set():  # else the control program says how long it may take
                clients.cancel_scope.deadline = trio.current_time() + vm.config.drain_time
        gateways.cancel_scope.cancel()
