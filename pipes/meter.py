"""What one end of a path counts while it works: figures that cost next to nothing and are never reset."""

from typing import Any, Final

# Latencies from under a microsecond to half an hour; what takes longer is in the last bucket.
BUCKETS: Final = 32


class Meter:
    """The figures of one end.

    ``sent`` and ``received`` count messages (one-way and calls), ``bytes_sent`` and ``bytes_received`` the frames of
    every kind that carry something, ``outstanding`` is how many messages of this end have not ended and ``high_water``
    the most there ever were, ``dropped`` how many one-way messages the edge's policy has dropped here, ``redelivered``
    how many were sent again to a successor. ``latency[i]`` counts calls of this end that were answered in less than
    2**i microseconds (and not in less than half of that).
    """

    __slots__ = (
        "_latency", "bytes_received", "bytes_sent", "dropped", "high_water", "outstanding", "received", "redelivered",
        "sent",
    )  # fmt: skip

    def __init__(self) -> None:
        self.sent = self.received = self.bytes_sent = self.bytes_received = 0
        self.outstanding = self.high_water = self.dropped = self.redelivered = 0
        self._latency: list[int] | None = None  # made by the first answer

    def answered(self, seconds: float) -> None:
        """Count a call that took this long."""
        if self._latency is None:
            self._latency = [0] * BUCKETS
        self._latency[min(int(seconds * 1_000_000).bit_length(), BUCKETS - 1)] += 1

    @property
    def latency(self) -> list[int]:
        """The histogram, BUCKETS counts."""
        return list(self._latency or [0] * BUCKETS)

    def add(self, other: "Meter") -> None:
        """Count the other's figures in: sums, and of the high-water marks the higher."""
        for name in _SUMS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.high_water = max(self.high_water, other.high_water)
        self._latency = [a + b for a, b in zip(self.latency, other.latency, strict=True)]

    def as_dict(self) -> dict[str, Any]:
        """The figures by name, as they go over the wire."""
        figures = {name: getattr(self, name) for name in (*_SUMS, "high_water")}
        return {**figures, "latency": self.latency}


_SUMS: Final = ("bytes_received", "bytes_sent", "dropped", "outstanding", "received", "redelivered", "sent")
