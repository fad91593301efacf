"""The sender that a receiver starts over ssh: `sender serve` (`filestreamer.ssh.service`).

It listens, sends to one receiver, and ends with it. What it needs to know comes over ssh; how the transfer ends, the
receiver knows from the transfer itself.
"""

import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from filestreamer.ssh import lines
from filestreamer.ssh.home import locate
from filestreamer.ssh.service import Request, serve
from filestreamer.wire.errors import FarSideFailed, FilestreamerError

if TYPE_CHECKING:
    from filestreamer.listening.acceptor import Listener

_PATTERN: Final = re.compile(r"[*?]|\[.*\]")
_KNOWN: Final[Mapping[str, lines.Types]] = {
    "paths": list,
    "connections": (int, type(None)),
    "chunk_size": (int, type(None)),
    "include": list,
    "exclude": list,
    "existing": str,
    "one_file_system": bool,
    "dereference": bool,
    "checksum": bool,
    "owner": bool,
    "delete": bool,
    "xattrs": bool,
}


def run() -> int:
    """Be the far side of a receiver; return the exit code."""
    return serve("sender", _Sender)


class _Sender:
    """The service."""

    def __init__(self, request: Request, listeners: "list[Listener]", log: Any) -> None:
        """Set it up. Raises FilestreamerError."""
        from filestreamer.credentials import certificate
        from filestreamer.settings import renewed
        from filestreamer.settings.address import Address
        from filestreamer.telemetry.monitor import Monitor
        from filestreamer.wire.messages import Existing
        from sender.server.server import Server
        from sender.settings import SenderSettings

        asked = lines.read_own(request.asked, _KNOWN)
        host = str(listeners[0].socket.getsockname()[0])
        # A slash at the end would send what is in a directory, under names that the receiver has not asked for.
        paths = tuple([locate(path).rstrip("/") or "/" for path in _texts(asked.pop("paths"))])
        _refuse_patterns(paths)
        settings = SenderSettings(
            input_files=paths,
            listen=Address(host, 0),
            once=True,
            token=request.token,
            tls=request.tls,
            give_up_after=request.give_up_after,
            log_level=request.log_level,
            metrics="off",
            include=tuple([lines.path_from_json(text) for text in _texts(asked.pop("include"))]),
            exclude=tuple([lines.path_from_json(text) for text in _texts(asked.pop("exclude"))]),
            existing=Existing[asked.pop("existing").upper()],
            **asked,
        )
        tls = certificate.current(settings, [host], request.token, log, "sender")
        self.certificate_sha256 = tls()[1]
        self._server: Server = Server(
            settings,
            Monitor("sender", settings, log),
            listeners=listeners,
            token=renewed.constant(request.token),
            tls=tls,
            log=log,
        )

    def is_used(self) -> bool:
        """Whether the receiver has a connection."""
        return self._server.is_connected

    def run(self) -> int:
        """Serve until the transfer is complete, or `stop`."""
        return self._server.run()

    def stop(self, error: FilestreamerError | None) -> None:
        """Make `run` raise this error, or return."""
        self._server.stop(error)


def _refuse_patterns(paths: tuple[str, ...]) -> None:
    """Raise FarSideFailed for a path that is not there, but looks like a pattern: a shell would have expanded it."""
    for path in paths:
        if _PATTERN.search(path) and not os.path.lexists(path):
            raise FarSideFailed(
                f"there is no {path}, and no pattern is expanded: name the directory, and choose in it with --include",
                exit_code=4,
                name="source",
            )


def _texts(items: list[Any]) -> list[str]:
    """Return a list of texts as it is. Raises FarSideFailed."""
    if not all(isinstance(item, str) for item in items):
        raise FarSideFailed("the request has a list of something other than text", exit_code=2)
    return items
