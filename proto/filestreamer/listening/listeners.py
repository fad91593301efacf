"""The sockets of --listen."""

from typing import Any

from filestreamer.listening.acceptor import Listener
from filestreamer.wire.errors import AddressNotReady, ConnectionLost, UsageError
from filestreamer.wire.sockets.listen import listen


def open_listeners(host: str, port: int, shown: str, log: Any) -> list[Listener]:
    """Return what listens on --listen, which people see as `shown`. Raises UsageError, AddressNotReady."""

    def tell(reason: str) -> None:
        log.warning("waiting_for_address", setting="--listen", reason=reason)

    try:
        return [Listener(sock) for sock in listen(host, port, tell)]
    except OSError as error:
        raise UsageError(f"--listen {shown}: {error.strerror}") from None
    except AddressNotReady as error:
        raise AddressNotReady(f"--listen: {error}") from None
    except ConnectionLost as error:
        raise UsageError(f"--listen: {error}") from None
