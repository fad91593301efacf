"""Transfers to be shown, and what a meter that never saw one says of it."""

import threading
from typing import Any

from filestreamer.telemetry.counters import ConnectionCounters, TransferCounters
from filestreamer.terminal.views import Meter, TransferView

MIB = 1 << 20


def counters(connections: int = 2, **fields: Any) -> TransferCounters:
    """Return the counters of a transfer of 100 MiB that began at 0."""
    known: dict[str, Any] = {
        "transfer_id": b"\xde\xad\xbe\xef" + bytes(12),
        "name": "in.txt",
        "size_bytes": 100 * MIB,
        "phase": "moving",
        "started_at": 0.0,
        "connections": [ConnectionCounters(number, up=True) for number in range(connections)],
    }
    return TransferCounters(**known | fields)


def move(transfer: TransferCounters, acknowledged_bytes: int, in_flight_bytes: int = 0) -> None:
    """Let every connection have moved and acknowledged so much more."""
    for connection in transfer.connections:
        connection.acknowledged_bytes += acknowledged_bytes
        connection.moved_bytes = connection.acknowledged_bytes + in_flight_bytes


def view(transfer: TransferCounters, now: float = 10.0) -> TransferView:
    """Return what a meter that never saw the transfer says of it."""
    return Meter().views([transfer], now)[0]


class Log:
    """Remembers lines, and lets a test wait for one."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, dict[str, Any]]] = []
        self.written = threading.Event()

    def info(self, event: str, **fields: Any) -> None:
        self.lines.append((event, fields))
        self.written.set()

    warning = info
