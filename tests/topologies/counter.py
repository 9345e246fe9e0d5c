"""An application for the topologies of this folder. It is found and read, never run."""


async def app(scope: object, receive: object, send: object) -> None:
    """Answer nothing."""
