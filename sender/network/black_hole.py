"""Finds out whether the path to the receiver loses large packets, and has the connections opened again with small ones.

Small frames are known to get through in both directions: the receiver's heartbeats came a moment ago, and no small
frame of this end waits to be acknowledged.
"""

import socket
import time
from typing import Any, Final

from filestreamer.telemetry import tcp_info
from filestreamer.telemetry.black_hole import (
    HEARD_SECONDS,
    LOOK_SECONDS,
    BlackHoleWatches,
    Direction,
    is_stuck,
    loses_small_frames,
)
from filestreamer.telemetry.tcp_info import TcpInfo
from filestreamer.wire.sockets.transport import Channel
from sender.network.connections import DataConnections
from sender.network.path_mtu import HEADER_BYTES, PathMtu

_PROVEN_SEGMENTS: Final = 2


class BlackHoleFinder:
    """Watches the connections of one transfer. For the coordinator's thread."""

    def __init__(self, connections: DataConnections, path_mtu: PathMtu, log: Any) -> None:
        self._connections = connections
        self._path_mtu = path_mtu
        self._log = log
        self._watches = BlackHoleWatches[socket.socket]()
        self._looked_at = 0.0
        self._reported: list[str] = []  # what was warned of

    def look(self, control: Channel | None, heard_at: float) -> None:
        """Look at all connections, once a second; `heard_at` is when the last byte came from the receiver."""
        now = time.monotonic()
        self._report_suspicion()
        if control is None or now - self._looked_at < LOOK_SECONDS:
            return
        self._looked_at = now
        sockets = [control.socket, *self._connections.sockets()]
        infos = {sock: info for sock in sockets if (info := tcp_info.read(sock)) is not None}
        found = self._watches.look(infos, now)
        if self._is_proven([infos[sock] for sock in infos if sock is not control.socket]):
            self._report_works(self._path_mtu.works())
        elif found and now - heard_at <= HEARD_SECONDS:
            self._act(control, infos, found)

    def control_is_up(self) -> None:
        """Take in that the receiver has welcomed control."""
        self._report_works(self._path_mtu.welcomed())

    def is_over(self) -> None:
        """Take in that the transfer is complete: all of it came through."""
        self._report_works(self._path_mtu.works())

    def _is_proven(self, infos: list[TcpInfo]) -> bool:
        """Whether full segments get through with the limit of now."""
        most = self._path_mtu.mss_bytes
        return any(
            info.delivered_bytes > _PROVEN_SEGMENTS * info.mss_bytes and not is_stuck(info)
            for info in infos
            if most is None or info.mss_bytes <= most
        )

    def _act(
        self, control: Channel, infos: dict[socket.socket, TcpInfo], found: dict[socket.socket, Direction]
    ) -> None:
        if loses_small_frames(infos.values()):
            return
        at_control = infos.get(control.socket)
        is_answered = at_control is not None and not at_control.unacknowledged_bytes
        sending = [sock for sock, seen in found.items() if seen == "sending"]
        if sending:
            mss_bytes = min(infos[sock].mss_bytes for sock in sending)
            where = f"small packets reach {control.peer}, and full ones ({mss_bytes} bytes of payload) do not"
        elif found.get(control.socket) == "receiving" and is_answered:
            assert at_control is not None
            mss_bytes = at_control.mss_bytes
            where = f"small packets come from {control.peer}, and full ones do not"
        else:
            return
        if self._path_mtu.suspect(where, mss_bytes):
            self._connections.shut()
            if control.socket in found:
                control.shut()

    def _report_suspicion(self) -> None:
        """Log what is suspected, once for each suspicion."""
        suspicion, tried_bytes = self._path_mtu.suspicion, self._path_mtu.mss_bytes
        if suspicion is None or suspicion in self._reported:
            return
        self._reported.append(suspicion)
        tries = f"; now trying packets of at most {tried_bytes + HEADER_BYTES} bytes" if tried_bytes else ""
        self._log.warning("mtu_black_hole", reason=f"{suspicion}{tries}")

    def _report_works(self, mss_bytes: int | None) -> None:
        """Log with which limit it works, where that was in doubt."""
        if mss_bytes is not None:
            self._log.info(
                "small_packets_work",
                mss=mss_bytes,
                reason=f"packets of at most {mss_bytes + HEADER_BYTES} bytes get through: all connections of this"
                " transfer use them from now on",
            )
