"""What helps where a path loses large packets (`filestreamer.telemetry.black_hole`): to dial with a smaller TCP_MAXSEG.

The limit holds for both directions of a connection, as it is also announced to the peer, and for all connections from
then on. It has to be set before a socket connects. Linux could find the right size itself (RFC 4821), but only for all
of a network namespace (the sysctl tcp_mtu_probing): no option of a socket has it do that for TCP.

Where packets from the receiver are lost, nothing comes back: its certificates in the TLS handshake, or a long answer.
The receiver may as well be stuck: so attempts are made with large and small packets in turn, until one gets through.
"""

import contextlib
import socket
import threading
from typing import Final

from filestreamer.telemetry import tcp_info
from filestreamer.telemetry.black_hole import REMEDY

MSS_STEPS: Final = (1220, 536)
"""1220 fits an MTU of 1280, the least that IPv6 has, with its headers; 536 that of 576, which every IPv4 host takes."""
HEADER_BYTES: Final = 60
"""IPv6 and TCP headers; those of IPv4 have 40."""


class PathMtu:
    """The limit of the transfer, and of those that continue it. Any thread may call it."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()  # protects the fields below
        self._mss_bytes: int | None = None
        self._steps = list(MSS_STEPS)
        self._is_trial = False
        """Whether the limit is that of one attempt, after a connection on which nothing came back."""
        self._is_handshake = False
        """Whether it was a TLS handshake."""
        self.suspicion: str | None = None
        """Why large packets seem to be lost, with the remedy, as long as nothing proves that they are not."""

    @property
    def mss_bytes(self) -> int | None:
        """The limit; None: there is none."""
        return self._mss_bytes

    def limit(self, sock: socket.socket) -> None:
        """Set the limit on a socket that is about to connect."""
        if (mss_bytes := self._mss_bytes) is not None:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, mss_bytes)

    def suspect(self, where: str, mss_bytes: int) -> bool:
        """Take in that segments of `mss_bytes` are lost; return whether smaller ones can be tried.

        `where` says what was seen. A connection that is older than the limit has larger segments: it is only to be
        opened again.
        """
        with self._mutex:
            if self._mss_bytes is None or mss_bytes <= self._mss_bytes:
                if not self._steps:
                    self.suspicion = f"{where}: whatever drops them, their size may not be the reason"
                    return False
                self._mss_bytes = self._steps.pop(0)
            self._is_trial = False
            self.suspicion = f"{where}: this is likely an MTU black hole: {REMEDY}"
            return True

    def works(self) -> int | None:
        """Take in that full segments get through; return the limit if that was in doubt, else None."""
        with self._mutex:
            if self.suspicion is None:
                return None
            self._is_trial, self.suspicion = False, None
            return self._mss_bytes

    # --- nothing comes back

    def handshake_failed(self, sock: socket.socket) -> None:
        """Look at a connection whose TLS handshake failed, before it is closed."""
        info = tcp_info.read(sock)
        if info is None or not info.is_established or info.received_bytes:
            return
        self._try(
            "the connection is made, and nothing comes back in the TLS handshake: the receiver is stuck, or this is an"
            f" MTU black hole, which loses its certificates: {REMEDY}"
        )
        self._is_handshake = True

    def fell_silent(self, control: socket.socket) -> None:
        """Look at the control connection of a receiver that says nothing any more, before it is shut."""
        info = tcp_info.read(control)
        if info is not None and info.is_established and not info.unacknowledged_bytes:
            self._try(
                "the receiver's machine takes what is sent, and nothing comes back: the receiver is stuck, or this is"
                f" an MTU black hole, which loses its long answers: {REMEDY}"
            )

    def _try(self, suspicion: str) -> None:
        """Have the next connections use smaller packets or, after the smallest, large ones again."""
        with self._mutex:
            if self._mss_bytes is None or self._is_trial:
                tries = (None, *MSS_STEPS)
                self._mss_bytes = tries[(tries.index(self._mss_bytes) + 1) % len(tries)]
                self._is_trial = self._mss_bytes is not None
                self.suspicion, self._is_handshake = suspicion, False

    def welcomed(self) -> int | None:
        """Take in that control was opened; return the limit if that is due to small packets, else None."""
        with self._mutex:
            if not self._is_handshake:
                return None
            self._is_handshake, self.suspicion = False, None
            if not self._is_trial:
                return None
            self._is_trial = False
            return self._mss_bytes
