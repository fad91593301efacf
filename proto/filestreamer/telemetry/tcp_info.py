"""What the kernel knows of a TCP connection: TCP_INFO of Linux (include/uapi/linux/tcp.h)."""

import fcntl
import socket
import struct
from typing import Final, NamedTuple

from filestreamer.wire.sockets.transport import SIOCOUTQ

_FIELDS: Final = struct.Struct("BxBB12xI48xI8xI16xI16xQQ8xI12xQ")
"""tcpi_state, _retransmits, _probes, _snd_mss, _rtt, _snd_cwnd, _total_retrans, _bytes_acked, _bytes_received,
_notsent_bytes, _delivery_rate."""
_WINDOW_FIELD: Final = struct.Struct("176xQ")
"""tcpi_rwnd_limited, since Linux 4.10."""
_LATER_FIELDS: Final = struct.Struct("224xI")
"""tcpi_rcv_ooopack, since Linux 5.4."""
_ESTABLISHED: Final = 1
PROBES_UNANSWERED: Final = 2
"""With so many probes of a closed window on the way, the peer's kernel still counts as one that answers."""


class TcpInfo(NamedTuple):
    """One connection at one moment, in the direction from this end to the peer."""

    unacknowledged_bytes: int
    """Sent, and not yet acknowledged by the peer's kernel."""
    unsent_bytes: int
    """In the send queue, not yet sent."""
    rtt_seconds: float
    congestion_window_bytes: int
    delivery_rate: int
    """The kernel's latest estimate, in bytes per second."""
    retransmits: int
    """TCP segments sent again on this socket."""
    delivered_bytes: int
    """Bytes of this socket, frames included, that the peer's kernel has acknowledged."""
    received_bytes: int = 0
    """Bytes that came in order."""
    mss_bytes: int = 0
    """The size of a full segment that is sent."""
    timeouts: int = 0
    """How many times in a row the oldest segment was sent again, with nothing acknowledged."""
    probes: int = 0
    """Probes of a closed window that the peer has not answered."""
    out_of_order: int = 0
    """Segments that came before one that was sent earlier; 0 where the kernel does not tell."""
    window_limited_seconds: float = 0.0
    """How long the peer's window has kept it from sending, so far: the peer reads slowly. 0.0 where the kernel does not
    tell."""
    is_established: bool = False
    """Whether the connection is open in both directions."""

    @property
    def is_window_closed(self) -> bool:
        """Whether the peer's kernel lives, and takes nothing because its process reads nothing."""
        return not self.unacknowledged_bytes and self.unsent_bytes > 0 and self.probes <= PROBES_UNANSWERED


def read(sock: socket.socket) -> TcpInfo | None:
    """Read TCP_INFO; None where there is none: not Linux, a kernel before 4.9, a closed socket."""
    try:
        raw = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _LATER_FIELDS.size)
        (queued_bytes,) = struct.unpack("i", fcntl.ioctl(sock, SIOCOUTQ, bytes(4)))
    except (AttributeError, OSError, ValueError):  # ValueError: the socket is closed
        return None
    if len(raw) < _FIELDS.size:
        return None
    (
        state,
        timeouts,
        probes,
        mss,
        rtt_microseconds,
        window,
        retransmits,
        delivered_bytes,
        received_bytes,
        unsent_bytes,
        delivery_rate,
    ) = _FIELDS.unpack_from(raw)
    (window_limited_us,) = _WINDOW_FIELD.unpack_from(raw) if len(raw) >= _WINDOW_FIELD.size else (0,)
    (out_of_order,) = _LATER_FIELDS.unpack(raw) if len(raw) >= _LATER_FIELDS.size else (0,)
    return TcpInfo(
        max(0, queued_bytes - unsent_bytes),
        unsent_bytes,
        rtt_microseconds / 1e6,
        window * mss,
        delivery_rate,
        retransmits,
        delivered_bytes,
        received_bytes,
        mss,
        timeouts,
        probes,
        out_of_order,
        window_limited_us / 1e6,
        state == _ESTABLISHED,
    )
