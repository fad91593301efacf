"""The receiver that a sender starts over ssh: `receiver serve` (`filestreamer.ssh.service`).

It receives for one sender, into one directory, and ends with it. What it needs to know comes over ssh; how the transfer
ends, the sender knows from the transfer itself.
"""

import contextlib
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from filestreamer.ssh import lines
from filestreamer.ssh.home import locate
from filestreamer.ssh.service import Request, serve
from filestreamer.wire.errors import Code, FarSideFailed, FilestreamerError, from_os_error

if TYPE_CHECKING:
    from filestreamer.listening.acceptor import Listener
    from receiver.disk.destination import Destination
    from receiver.settings import ReceiverSettings

_KNOWN: Final[Mapping[str, type]] = {"directory": str, "allow_delete": bool, "allow_privileged": bool, "dry_run": bool}

Prepare = Callable[["ReceiverSettings", "Destination", Any], None]


def run(prepare: Prepare) -> int:
    """Be the far side of a sender; return the exit code. `prepare` gets the destination before it is used."""
    return serve("receiver", lambda request, listeners, log: _Receiver(request, listeners, log, prepare))


class _Receiver:
    """The service."""

    def __init__(self, request: Request, listeners: "list[Listener]", log: Any, prepare: Prepare) -> None:
        """Set it up. Raises FilestreamerError."""
        from filestreamer.credentials import certificate
        from filestreamer.settings import renewed
        from filestreamer.telemetry.monitor import Monitor
        from receiver.disk.destination import Destination
        from receiver.server.server import Server
        from receiver.server.token import of_one
        from receiver.settings import ReceiverSettings

        asked = lines.read_own(request.asked, _KNOWN)
        directory = locate(asked["directory"])
        made = _make_last(directory)
        self._to_remove = made if asked["dry_run"] else None
        settings = ReceiverSettings(
            directory=directory,
            once=True,
            token=request.token,
            tls=request.tls,
            give_up_after=request.give_up_after,
            log_level=request.log_level,
            allow_delete=asked["allow_delete"],
            allow_privileged=asked["allow_privileged"],
            metrics="off",
        )
        destination = Destination(
            directory, allow_privileged=settings.allow_privileged, allow_delete=settings.allow_delete
        )
        prepare(settings, destination, log)
        hosts = [str(listeners[0].socket.getsockname()[0])]
        tls = certificate.current(settings, hosts, settings.token, log)
        self.certificate_sha256 = tls()[1]
        monitor = Monitor("receiver", settings, log, destination.free_bytes_at_path)
        self._server: Server = Server(
            settings,
            destination,
            monitor,
            output_name=None,
            listeners=listeners,
            tokens=renewed.constant(of_one(settings.token)),
            tls=tls,
            log=log,
        )

    def is_used(self) -> bool:
        """Whether the sender has a connection."""
        return self._server.admission.is_connected

    def run(self) -> int:
        """Serve until the transfer is complete, or `stop`."""
        try:
            return self._server.run()
        finally:
            if self._to_remove is not None:
                with contextlib.suppress(OSError):
                    os.rmdir(self._to_remove)

    def stop(self, error: FilestreamerError | None) -> None:
        """Make `run` raise this error, or return."""
        self._server.stop(error)


def _make_last(path: str) -> str | None:
    """Make a directory that is missing in one that is there; return its path if it was made. Raises TransferFailed."""
    try:
        os.mkdir(path)
    except FileExistsError:
        return None
    except FileNotFoundError as error:
        parent = os.path.dirname(path.rstrip("/")) or "/"
        if os.path.isdir(parent):  # /proc has a way of its own to say that nothing is made there
            raise from_os_error(error, Code.DESTINATION, f"can't make the directory {path}") from None
        raise FarSideFailed(
            f"can't write into {path}: there is no directory {parent}: make it first", exit_code=4, name="destination"
        ) from None
    except OSError as error:
        if os.path.isdir(path):  # `/` and mount points of read-only file systems, of which mkdir says something else
            return None
        raise from_os_error(error, Code.DESTINATION, f"can't make the directory {path}") from None
    return path
