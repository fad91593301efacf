"""A receiver that this sender starts over ssh: `--to [USER@]HOST:DIR` (`filestreamer.ssh`)."""

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from filestreamer.wire.errors import Code, from_os_error
from sender.settings import STDIN, SenderSettings

if TYPE_CHECKING:
    from filestreamer.wire.sockets.route import Route


@contextlib.contextmanager
def reached(settings: SenderSettings, log: Any) -> "Iterator[tuple[SenderSettings, Route | None]]":
    """Start the receiver, if the user wants one to be started; it ends with the block.

    Yield the settings of the transfer, and the route to its receiver; None: that to --to. Raises FilestreamerError.
    """
    remote = settings.remote
    if remote is None:
        yield settings, None
        return
    from filestreamer.ssh import lines
    from filestreamer.ssh.far_side import FarSide, Start

    _look(settings)  # before somebody types a password for nothing
    asked = {
        "directory": lines.path_to_json(remote.path),
        "allow_delete": settings.delete,
        "allow_privileged": settings.owner,
        "dry_run": settings.dry_run,
    }
    start = Start(
        remote,
        "receiver",
        asked,
        settings.ssh,
        settings.remote_command or "receiver",
        settings.via,
        not settings.no_tls,
        settings.give_up_after,
        settings.patience,
        settings.log_level,
    )
    far_side = FarSide(start, log)
    try:
        far_side.log_in()
        connections = settings.connections
        if connections is None and not far_side.route.is_direct:
            connections = far_side.connections
        yield (
            dataclasses.replace(
                settings,
                token=far_side.token,
                tls=far_side.uses_tls,
                no_tls=not far_side.uses_tls,
                connections=connections,
            ),
            far_side.route,
        )
    finally:
        far_side.end()


def _look(settings: SenderSettings) -> None:
    """Look whether the paths to send are there. Raises TransferFailed(SOURCE)."""
    for path in settings.input_files:
        if path != STDIN:
            try:
                os.stat(path)
            except OSError as error:
                raise from_os_error(error, Code.SOURCE, f"can't read {path}") from None
