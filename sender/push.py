"""A receiver that this sender starts over ssh: `--to [USER@]HOST:DIR` (`filestreamer.ssh`)."""

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

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
    from filestreamer.ssh.far_side import logged_in

    _look(settings)  # before somebody types a password for nothing
    asked = {
        "directory": lines.path_to_json(remote.path),
        "allow_delete": settings.delete,
        "allow_privileged": settings.owner,
        "dry_run": settings.dry_run,
    }
    with logged_in(settings, remote, "receiver", asked, log) as (chosen, far_side):
        is_fixed = chosen.connections is not None or far_side.route.is_direct
        yield chosen if is_fixed else dataclasses.replace(chosen, connections=far_side.connections), far_side.route


def _look(settings: SenderSettings) -> None:
    """Look whether the paths to send are there. Raises TransferFailed(SOURCE)."""
    for path in settings.input_files:
        if path != STDIN:
            try:
                os.stat(path)
            except OSError as error:
                from sender.listing.listing import not_readable  # no other run needs it here

                raise not_readable(path, error) from None
