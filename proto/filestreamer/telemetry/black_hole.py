"""Recognises an MTU black hole: a path that carries small packets, and silently drops large ones (RFC 2923, 2.1).

A router that can't forward a packet has to say so (ICMP "fragmentation needed", "packet too big"). Where a firewall
drops that message, the kernel sends the same full segment again and again. Small frames get through, which tells this
apart from a dead cable; and the peer's window is open, which tells it apart from a slow peer.

    sending    the oldest segment is full, was sent TIMEOUTS times or more, and nothing is acknowledged meanwhile
    receiving  segments came that were sent later, and those before them never do

A caller has to know that small frames get through in both directions. Pure: the caller has the clock.
"""

from collections.abc import Hashable, Iterable, Mapping
from typing import Final, Generic, Literal, TypeVar

from filestreamer.telemetry.tcp_info import TcpInfo
from filestreamer.wire import limits

Direction = Literal["sending", "receiving"]
K = TypeVar("K", bound=Hashable)

LOOK_SECONDS: Final = 1.0
"""How often to look at the connections."""
HEARD_SECONDS: Final = 2 * limits.HEARTBEAT_SECONDS + 1
"""After this long without a byte from the peer, the path may carry nothing at all."""

STUCK_SECONDS: Final = 10.0
"""How long nothing moves before it is said. Ordinary loss ends sooner: the kernel has sent the segment five times."""
TIMEOUTS: Final = 3
REMEDY: Final = (
    'lower the MTU of this machine\'s interface to that of the path, let ICMP "fragmentation needed" through,'
    " or set the sysctl net.ipv4.tcp_mtu_probing=1 on both machines"
)


class BlackHoleWatch:
    """Watches one connection. Call `look` about once a second."""

    def __init__(self) -> None:
        self._delivered_bytes = self._received_bytes = -1
        self._delivered_at = self._received_at = 0.0
        self._out_of_order = 0  # of the last look
        self._out_of_order_before = 0  # of the last look before bytes came in order

    def look(self, info: TcpInfo, now: float) -> Direction | None:
        """Take in what the kernel knows; return the direction in which full segments seem to be lost."""
        if info.delivered_bytes != self._delivered_bytes:
            self._delivered_bytes, self._delivered_at = info.delivered_bytes, now
        if info.received_bytes != self._received_bytes:
            self._received_bytes, self._received_at = info.received_bytes, now
            self._out_of_order_before = self._out_of_order
        self._out_of_order = info.out_of_order
        if is_stuck(info) and is_full(info) and now - self._delivered_at >= STUCK_SECONDS:
            return "sending"
        if info.out_of_order > self._out_of_order_before and now - self._received_at >= STUCK_SECONDS:
            return "receiving"
        return None


class BlackHoleWatches(Generic[K]):
    """A watch for each connection that is up, by any key; those of other connections go."""

    def __init__(self) -> None:
        self._watches: dict[K, BlackHoleWatch] = {}

    def look(self, infos: Mapping[K, TcpInfo], now: float) -> dict[K, Direction]:
        """Take in what the kernel knows of each connection; return those on which full segments seem to be lost."""
        self._watches = {key: self._watches.get(key) or BlackHoleWatch() for key in infos}
        return {key: seen for key, info in infos.items() if (seen := self._watches[key].look(info, now)) is not None}


def loses_small_frames(infos: Iterable[TcpInfo]) -> bool:
    """Whether small frames don't get through, either: then the size of packets is not the reason."""
    return any(is_stuck(info) and not is_full(info) for info in infos)


def is_stuck(info: TcpInfo) -> bool:
    """Whether the kernel sends the same segment again and again, into an open window."""
    return info.timeouts >= TIMEOUTS and info.unacknowledged_bytes > 0 and not info.probes


def is_full(info: TcpInfo) -> bool:
    """Whether the oldest segment is, as far as can be known, a full one."""
    return info.unacknowledged_bytes + info.unsent_bytes >= info.mss_bytes
