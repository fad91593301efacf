"""A sender that this receiver starts over ssh: `--from [USER@]HOST:PATH` (`filestreamer.ssh`).

The sender is no friend: it gets the names that were asked for into the destination, and no others (`transfer.asked`).
"""

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from receiver.transfer.asked import Asked

if TYPE_CHECKING:
    from filestreamer.wire.sockets.route import Route
    from receiver.settings import ReceiverSettings


@contextlib.contextmanager
def started(settings: "ReceiverSettings", log: Any) -> "Iterator[tuple[ReceiverSettings, Route, Asked]]":
    """Start the sender; it ends with the block.

    Yield the settings of the transfer, the route to its sender, and what that may bring. Raises FilestreamerError.
    """
    from filestreamer.ssh import lines
    from filestreamer.ssh.far_side import FarSide, Start

    asked = {
        "paths": [lines.path_to_json(remote.path) for remote in settings.fetch],
        "connections": settings.connections,
        "chunk_size": settings.chunk_size,
        "include": [lines.path_to_json(pattern) for pattern in settings.include],
        "exclude": [lines.path_to_json(pattern) for pattern in settings.exclude],
        "existing": settings.existing.name.lower(),
    }
    for name in ("one_file_system", "dereference", "checksum", "owner", "delete", "xattrs"):
        asked[name] = getattr(settings, name)
    start = Start(
        settings.fetch[0],
        "sender",
        asked,
        settings.ssh,
        settings.remote_command or "sender",
        settings.via,
        not settings.no_tls,
        settings.give_up_after,
        settings.patience,
        settings.log_level,
    )
    far_side = FarSide(start, log)
    try:
        far_side.log_in()
        yield (
            dataclasses.replace(
                settings,
                token=far_side.token,
                tls=far_side.uses_tls,
                no_tls=not far_side.uses_tls,
            ),
            far_side.route,
            Asked(
                frozenset(os.fsencode(remote.name) for remote in settings.fetch),
                settings.existing,
                settings.delete,
                settings.checksum,
                settings.xattrs,
            ),
        )
    finally:
        far_side.end()
