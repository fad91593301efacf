"""What the kernel knows of a TCP connection: TCP_INFO of Linux (include/uapi/linux/tcp.h)."""

import fcntl
import socket
import struct
from typing import Final, NamedTuple

from filestreamer.wire.sockets.transport import SIOCOUTQ

_FIELDS: Final = struct.Struct("16xI48xI8xI16xI16xQ16xI12xQ")
"""tcpi_snd_mss, _rtt, _snd_cwnd, _total_retrans, _bytes_acked, _notsent_bytes, _delivery_rate."""


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


def read(sock: socket.socket) -> TcpInfo | None:
    """Read TCP_INFO; None where there is none: not Linux, a kernel before 4.9, a closed socket."""
    try:
        raw = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _FIELDS.size)
        (queued_bytes,) = struct.unpack("i", fcntl.ioctl(sock, SIOCOUTQ, bytes(4)))
    except (AttributeError, OSError, ValueError):  # ValueError: the socket is closed
        return None
    if len(raw) < _FIELDS.size:
        return None
    mss, rtt_microseconds, window, retransmits, delivered_bytes, unsent_bytes, delivery_rate = _FIELDS.unpack(raw)
    return TcpInfo(
        max(0, queued_bytes - unsent_bytes),
        unsent_bytes,
        rtt_microseconds / 1e6,
        window * mss,
        delivery_rate,
        retransmits,
        delivered_bytes,
    )
