"""A sender that this receiver starts over ssh: `--from [USER@]HOST:PATH` (`filestreamer.ssh`).

The sender is no friend: it gets the names that were asked for into the destination, and no others (`transfer.asked`).
"""

import contextlib
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
    from filestreamer.ssh.far_side import logged_in
    from filestreamer.wire.patterns import pattern_filter

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
    only = Asked(
        frozenset(os.fsencode(remote.name) for remote in settings.fetch),
        settings.existing,
        settings.delete,
        settings.checksum,
        settings.xattrs,
        tuple([os.fsencode(pattern) for pattern in settings.exclude if pattern]),
        pattern_filter(settings.include, settings.exclude) if settings.include or settings.exclude else None,
    )
    with logged_in(settings, settings.fetch[0], "sender", asked, log) as (reached, far_side):
        yield reached, far_side.route, only
