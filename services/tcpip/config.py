"""What TCPIP can be told, with the reason for each default. Times are in seconds."""

import attrs
from attrs.validators import ge, gt

from retinue.services.resumable import MOST_KEPT
from retinue.services.tcpip.policy import validate_allow


@attrs.frozen(kw_only=True)
class Config:
    """``listen``: address -> local name of an edge. ``allow``: name of a machine, or ``*``, -> where it may go."""

    listen: dict[str, str] = attrs.field(factory=dict)
    # Connections that may be open at once; more wait in the kernel's backlog. Each costs a descriptor here and a path.
    max_connections: int = attrs.field(default=1024, validator=ge(1))
    # Connections that the kernel completes and keeps for us; it cuts this to net.core.somaxconn.
    backlog: int = attrs.field(default=1024, validator=ge(1))
    # Bytes of what a client has sent that are kept until they are answered, so that another process of the machine can
    # go on when one has died: four times the largest headers that HTTPD takes, and a form. 0: no connection survives.
    max_kept: int = attrs.field(default=MOST_KEPT, validator=ge(0))
    # How long a client waits for a machine that is starting or being restarted before its connection is closed.
    patience: float = attrs.field(default=5.0, validator=gt(0))

    allow: dict[str, list[str]] = attrs.field(factory=dict, validator=validate_allow)
    # Paths of machines that ask to go outside, each with a connection of its own: of all of them, and of one.
    max_outbound: int = attrs.field(default=1024, validator=ge(1))
    max_outbound_per_machine: int = attrs.field(default=256, validator=ge(1))
    # How long looking up a name may take: resolv.conf(5) has 5 s for one try of one server.
    resolve_time: float = attrs.field(default=10.0, validator=gt(0))
    # How long connecting may take, over all addresses of a name. The kernel alone would try for two minutes.
    connect_time: float = attrs.field(default=10.0, validator=gt(0))
    # How long datagrams may be missing in both directions before their socket is closed; UDP has no end of its own.
    udp_idle_time: float = attrs.field(default=60.0, validator=gt(0))

    # How long connections that still owe an answer may go on when the system stops.
    drain_time: float = attrs.field(default=5.0, validator=ge(0))
