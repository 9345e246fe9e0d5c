"""Which descriptor is whose on arrival: the frames of a packet take them in order."""

from retinue.pipes.errors import ProtocolViolation


def claim(descriptors: list[int], count: int) -> tuple[int, ...]:
    """Take the descriptors of one frame out of those its packet brought. Raises :exc:`ProtocolViolation`."""
    if count == 0:
        return ()
    if len(descriptors) < count:
        raise ProtocolViolation("a frame claims more descriptors than came")
    claimed = tuple(descriptors[:count])
    del descriptors[:count]
    return claimed
