"""What the kernel knows of a TCP connection: TCP_INFO, as Linux has it (include/uapi/linux/tcp.h)."""

import fcntl
import socket
import struct
from typing import Final, NamedTuple

_FIELDS: Final = struct.Struct("16xI48xI8xI16xI16xQ16xI12xQ")
"""tcpi_snd_mss, _rtt, _snd_cwnd, _total_retrans, _bytes_acked, _notsent_bytes, _delivery_rate."""
_SIOCOUTQ: Final = 0x5411


class TcpInfo(NamedTuple):
    """One connection at one moment, in the direction in which this end sends."""

    unacknowledged_bytes: int
    """Sent, and not acknowledged by the peer's kernel."""
    unsent_bytes: int
    """Waiting in the socket's send queue."""
    rtt_seconds: float
    congestion_window_bytes: int
    delivery_rate: int
    """Bytes per second, the kernel's latest estimate."""
    retransmits: int
    """Segments sent again on this socket."""
    delivered_bytes: int
    """Acknowledged by the peer's kernel on this socket, frames and all."""


def read(sock: socket.socket) -> TcpInfo | None:
    """Ask the kernel; None where it does not say: another system, a kernel before 4.9, a socket that is closed."""
    try:
        raw = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _FIELDS.size)
        (queued_bytes,) = struct.unpack("i", fcntl.ioctl(sock, _SIOCOUTQ, bytes(4)))
    except (AttributeError, OSError, ValueError):  # ValueError: closed, so that it has no descriptor
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
