"""Tells of a path from or to the sender that seems to lose large packets (`filestreamer.telemetry.black_hole`).

Only the sender can open connections again with smaller packets. This end sees what the sender can't: segments that
came, while those before them never do.
"""

import socket
from typing import Any

from filestreamer.telemetry import tcp_info
from filestreamer.telemetry.black_hole import HEARD_SECONDS, LOOK_SECONDS, REMEDY, BlackHoleWatches, loses_small_frames
from filestreamer.wire.sockets.control_link import ControlLink
from receiver.transfer.connection_set import ConnectionSet
from receiver.transfer.liveness import Liveness


class BlackHoleFinder:
    """Watches the connections of one transfer. For the coordinator's thread."""

    def __init__(self, link: ControlLink, connection_set: ConnectionSet, liveness: Liveness, log: Any) -> None:
        self._link = link
        self._connection_set = connection_set
        self._liveness = liveness
        self._log = log
        self._watches = BlackHoleWatches[socket.socket]()
        self._looked_at = 0.0
        self._is_told = False

    def look(self, now: float) -> None:
        """Look at all connections; warn the first time that large packets seem to be lost."""
        control = self._link.channel
        if control is None or now - self._looked_at < LOOK_SECONDS:
            return
        self._looked_at = now
        sockets = [control.socket, *(each.channel.socket for each in self._connection_set.attached)]
        infos = {sock: info for sock in sockets if (info := tcp_info.read(sock)) is not None}
        found = self._watches.look(infos, now).values()
        at_control = infos.get(control.socket)
        # Where the sender's frames on control are what does not come, its kernel still acknowledges heartbeats.
        is_alive = at_control is not None and not at_control.unacknowledged_bytes
        if not found or not (is_alive or now - control.heard_at <= HEARD_SECONDS):
            return
        if loses_small_frames(infos.values()):
            return
        way = f"reach {control.peer}" if "sending" in found else f"come from {control.peer}"
        reason = f"small packets {way}, and full ones do not: this is likely an MTU black hole: {REMEDY}"
        self._liveness.black_hole = reason
        if not self._is_told:
            self._is_told = True
            self._log.warning("mtu_black_hole", reason=reason)
