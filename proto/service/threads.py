"""The top of a thread: the one place that catches everything, so that no thread ends without its transfer hearing."""

from collections.abc import Callable

from wire.errors import Code, FilestreamerError, TransferFailed


def run_to_end(what: str, body: Callable[[], None]) -> FilestreamerError | None:
    """Run the body of a thread; return what ended it, None where it just returned.

    Anything but a FilestreamerError is a bug, and becomes TransferFailed(INTERNAL) that names `what` was going on.
    """
    try:
        body()
    except FilestreamerError as error:
        return error
    except Exception as error:  # noqa: BLE001 - the top of a thread: whatever it is, somebody must hear of it
        return TransferFailed(Code.INTERNAL, f"{what}: {error!r} (a bug: please report it)")
    return None
