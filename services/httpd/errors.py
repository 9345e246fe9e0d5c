"""What can go wrong with a request, cut by who is at fault.

==============  ==================================================================================
the client      :class:`HttpError` with a 4xx status, :class:`ClientGone`
the application :class:`BadReply`, :class:`HttpError` 500 (it failed), 502 and 504 (it is lost or late)
the system      :class:`HttpError` 503 (nobody is there to answer now)
the topology    :class:`BadRoute`
==============  ==================================================================================
"""

from http import HTTPStatus


class HttpError(Exception):
    """The request is answered with an error status.

    ``status`` is 400 to 599, ``text`` one sentence for the client (never what the client or an application sent),
    ``retry_after`` whole seconds for the header of that name, or None.
    """

    def __init__(self, status: int, text: str = "", *, retry_after: int | None = None) -> None:
        self.status = status
        self.text = text or f"{HTTPStatus(status).description or HTTPStatus(status).phrase}."
        self.retry_after = retry_after
        super().__init__(f"{status} {self.text}")


class ClientGone(Exception):
    """The client is not there any more, or takes nothing: there is nobody to answer."""


class BadReply(Exception):
    """An application's machine answered with what is no HTTP response. ``rule`` says which rule it broke."""

    def __init__(self, rule: str) -> None:
        self.rule = rule
        super().__init__(rule)


class BadRoute(ValueError):
    """``config.routes`` cannot be obeyed. Fields: ``prefix``, ``edge``."""

    def __init__(self, prefix: str, edge: str, text: str) -> None:
        self.prefix, self.edge = prefix, edge
        super().__init__(f"config.routes: {prefix!r} -> {edge!r}: {text}")
