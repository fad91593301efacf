"""Progress where standard error is no terminal: `progress` lines in the log."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, Self

from filestreamer.terminal.views import TransferView

if TYPE_CHECKING:
    from filestreamer.process.log import Logger

LINES_MAX: Final = 8
"""Transfers that get a line of their own each time. Strangers may begin many more, which share one line."""


class LogLines:
    """Writes a `progress` line for each active transfer, each time `show` is called."""

    def __init__(self, log: "Logger") -> None:
        self._log = log

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        pass

    def show(self, views: Sequence[TransferView]) -> None:
        """Write a line for each of the first transfers, and one line for all others together."""
        active = [view for view in views if not view.ended]
        for view in active[:LINES_MAX]:
            self._log.info(
                "progress",
                transfer=view.transfer_id.hex()[:8],
                percent=None if view.fraction is None else math.floor(1000 * view.fraction) / 10,
                acknowledged_bytes=view.acknowledged_bytes,
                size_bytes=view.size_bytes,
                bytes_per_second=round(view.bytes_per_second),
                bytes_in_flight=view.bytes_in_flight,
                eta_seconds=None if view.eta_seconds is None else round(view.eta_seconds, 1),
                phase=view.phase,
            )
        if others := active[LINES_MAX:]:
            self._log.info(
                "progress",
                transfers=len(others),
                acknowledged_bytes=sum(view.acknowledged_bytes for view in others),
                bytes_per_second=round(sum(view.bytes_per_second for view in others)),
                bytes_in_flight=sum(view.bytes_in_flight for view in others),
            )

    def finish(self, views: Sequence[TransferView]) -> None:
        """Write nothing: the end of a transfer has a log line of its own."""
