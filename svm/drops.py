"""Says that records were dropped as soon as there is room for that, though the machine may say nothing more.

Who floods and then falls silent would otherwise have lost records that nobody knows of.
"""

import contextlib
import socket

import trio

from retinue.svm.log import LogWriter


async def tell_drops(writer: LogWriter, log: socket.socket) -> None:
    """For as long as somebody reads the log; ``log`` is what the writer writes to."""
    token = trio.lowlevel.current_trio_token()
    dropped = trio.Event()

    def note() -> None:
        """By any thread, which may outlive the loop."""
        with contextlib.suppress(trio.RunFinishedError):
            token.run_sync_soon(dropped.set, idempotent=True)

    try:
        while True:
            dropped = trio.Event()
            writer.watch(note)
            while writer.stuck:
                await trio.lowlevel.wait_writable(log)
                try:
                    writer.tell_dropped()
                except BlockingIOError:
                    continue
                except OSError:
                    return
            await dropped.wait()
    finally:
        writer.watch(None)
