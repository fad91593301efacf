"""Views of transfers at one moment, with rates that a `Meter` computes from the counters.

Done means acknowledged: written and verified by the receiver, or there before. What was sent and is not acknowledged is
in flight.
"""

from collections import deque
from collections.abc import Hashable, Sequence
from typing import Any, Final, Literal, NamedTuple

from filestreamer.telemetry.counters import Phase, TransferCounters

Direction = Literal["sending", "receiving"]

RATE_WINDOW_SECONDS: Final = 5.0
"""A rate is the mean of at least this long, once a transfer has lasted so long."""


class ConnectionView(NamedTuple):
    """One data connection at one moment."""

    connection_id: int
    up: bool
    bytes_per_second: float
    bytes_in_flight: int


class TransferView(NamedTuple):
    """One transfer at one moment."""

    transfer_id: bytes
    name: str
    phase: Phase
    ended: bool
    size_bytes: int | None
    """None while it is not known: of a stream that has not ended."""
    done_bytes: int
    """Acknowledged, or held before."""
    acknowledged_bytes: int
    rehashed_bytes: int
    bytes_per_second: float
    """Acknowledged bytes over the last few seconds; of a transfer that has ended, over all its time."""
    bytes_in_flight: int
    eta_seconds: float | None
    """None while nothing moves."""
    connections: tuple[ConnectionView, ...]

    @property
    def fraction(self) -> float | None:
        """How much is done, 0 to 1, and 1 only when everything is; None while the size is not known."""
        if self.size_bytes is None:
            return None
        if self.size_bytes == 0:
            return float(self.phase in ("syncing", "complete"))
        return min(1.0, self.done_bytes / self.size_bytes)


class Meter:
    """Turns counters into views. For one thread; does no I/O; `now` is monotonic time, as in the counters."""

    def __init__(self) -> None:
        # (time, bytes) of the last few seconds, by transfer and by connection of a transfer.
        self._samples: dict[Hashable, deque[tuple[float, int]]] = {}

    def views(self, transfers: Sequence[TransferCounters], now: float) -> list[TransferView]:
        """Take a sample of each transfer and return the views; samples of transfers that are not given are dropped."""
        previous, self._samples = self._samples, {}
        return [self._transfer(counters, now, previous) for counters in transfers]

    def _transfer(self, counters: TransferCounters, now: float, previous: dict[Hashable, Any]) -> TransferView:
        def rate(key: Hashable, total_bytes: int) -> float:
            samples = previous.get(key) or deque([(counters.started_at, 0)])
            self._samples[key] = samples
            return _rate(samples, now, total_bytes)

        acknowledged_bytes = counters.acknowledged_bytes
        done_bytes = acknowledged_bytes + counters.there_bytes
        bytes_per_second = rate(counters.transfer_id, acknowledged_bytes)
        ended = counters.ended_at is not None
        if ended and counters.seconds > 0:
            bytes_per_second = acknowledged_bytes / counters.seconds
        left_bytes = max(0, counters.data_bytes - done_bytes)
        return TransferView(
            transfer_id=counters.transfer_id,
            name=counters.name,
            phase=counters.phase,
            ended=ended,
            size_bytes=None if counters.is_growing else counters.data_bytes,
            done_bytes=done_bytes,
            acknowledged_bytes=acknowledged_bytes,
            rehashed_bytes=counters.rehashed_bytes,
            bytes_per_second=bytes_per_second,
            bytes_in_flight=counters.bytes_in_flight,
            eta_seconds=left_bytes / bytes_per_second if bytes_per_second > 0 and not counters.is_growing else None,
            connections=tuple(
                ConnectionView(
                    item.connection_id,
                    item.up,
                    rate((counters.transfer_id, item.connection_id), item.acknowledged_bytes),
                    item.bytes_in_flight,
                )
                for item in sorted(counters.connections, key=lambda item: item.connection_id)
            ),
        )


def _rate(samples: deque[tuple[float, int]], now: float, total_bytes: int) -> float:
    """Add a sample; return bytes per second since the newest sample that is at least a window old."""
    samples.append((now, total_bytes))
    while len(samples) > 2 and now - samples[1][0] >= RATE_WINDOW_SECONDS:
        samples.popleft()
    then, bytes_then = samples[0]
    return max(0, total_bytes - bytes_then) / (now - then) if now > then else 0.0
