"""Tells of a path from or to the sender that seems to lose large packets (`filestreamer.telemetry.black_hole`).

Only the sender can open connections again with smaller packets. This end sees what the sender can't: segments that
came, while those before them never do.
"""

import socket
from typing import Any, Final

from filestreamer.telemetry import tcp_info
from filestreamer.telemetry.black_hole import REMEDY, BlackHoleWatch, is_full, is_stuck
from filestreamer.wire import limits
from filestreamer.wire.sockets.control_link import ControlLink
from receiver.transfer.connection_set import ConnectionSet
from receiver.transfer.liveness import Liveness

LOOK_SECONDS: Final = 1.0
HEARD_SECONDS: Final = 2 * limits.HEARTBEAT_SECONDS + 1
"""After this long without a byte from the sender, the path may carry nothing at all."""


class BlackHoleFinder:
    """Watches the connections of one transfer. For the coordinator's thread."""

    def __init__(self, link: ControlLink, connection_set: ConnectionSet, liveness: Liveness, log: Any) -> None:
        self._link = link
        self._connection_set = connection_set
        self._liveness = liveness
        self._log = log
        self._watches: dict[socket.socket, BlackHoleWatch] = {}
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
        self._watches = {sock: self._watches.get(sock) or BlackHoleWatch() for sock in infos}
        found = {seen for sock in infos if (seen := self._watches[sock].look(infos[sock], now)) is not None}
        at_control = infos.get(control.socket)
        # Where the sender's frames on control are what does not come, its kernel still acknowledges heartbeats.
        is_alive = at_control is not None and not at_control.unacknowledged_bytes
        if not found or not (is_alive or now - control.heard_at <= HEARD_SECONDS):
            return
        if any(is_stuck(info) and not is_full(info) for info in infos.values()):
            return  # small frames don't get through, either
        way = f"reach {control.peer}" if "sending" in found else f"come from {control.peer}"
        reason = f"small packets {way}, and full ones do not: this is likely an MTU black hole: {REMEDY}"
        self._liveness.black_hole = reason
        if not self._is_told:
            self._is_told = True
            self._log.warning("mtu_black_hole", reason=reason)
