"""Tells the receiver of a job why its sender ends for good, where no control connection does: it need not wait then.

The reason may be found before the first connection (a path that is not there), or while there is none.
"""

import time
from collections.abc import Callable
from typing import Any, Final

from filestreamer.process.backoff import Backoff
from filestreamer.wire import messages as m
from filestreamer.wire.errors import Code, FilestreamerError, TransferFailed
from filestreamer.wire.opening import random_id
from filestreamer.wire.sockets.route import Route
from sender.network.control_state import ControlState
from sender.network.dial import Dialer
from sender.settings import SenderSettings

TELL_SECONDS: Final = 60.0
"""How long a receiver is looked for: it may start at the same moment."""
_CLOSING_SECONDS: Final = 2.0


def say_why(
    settings: SenderSettings, error: FilestreamerError, log: Any, route: Route | None, is_over: Callable[[], bool]
) -> None:
    """Tell the receiver of a job that this sender ends with `error`, if it does so for good, for a reason of its own.

    Tries for TELL_SECONDS, or until `is_over`. A receiver that has refused the sender, or is not the right one, is told
    nothing.
    """
    if settings.job is None or not isinstance(error, TransferFailed):
        return
    if not error.ends_job:
        return
    if error.code is Code.POLICY:  # the receiver is an older one: it knows neither what was asked for, nor jobs
        return
    dialer = Dialer(settings, random_id(), ControlState(), (), log, route=route)
    abort = m.Abort(error.code, error.reason)
    backoff, until = Backoff(), time.monotonic() + TELL_SECONDS
    try:
        while not is_over():
            try:
                channel, _, _ = dialer.open_control(lambda _address, _pending: None)
                channel.send_message(abort)
                channel.close_in_order(_CLOSING_SECONDS)
                log.info("receiver_told", reason=str(error))
                return
            except FilestreamerError as trouble:
                pause = backoff.next()
                if not trouble.retryable or time.monotonic() + pause > until:
                    log.warning("receiver_not_told", reason=str(trouble))
                    return
                time.sleep(pause)
    finally:
        dialer.close()
