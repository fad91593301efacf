"""The `receiver` command: settings in, transfers, a result for each, the exit code of its cause."""

import contextlib
import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from service import signals
from wire.errors import FilestreamerError, Interrupted, UsageError

if TYPE_CHECKING:
    import socket

    from receiver.settings import ReceiverSettings
    from receiver.store import Destination


def main() -> NoReturn:
    """Run the command with this process's arguments and environment, and exit."""
    signals.end_at_once()
    signals.leave(run(sys.argv[1:], os.environ))


def run(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """Run the command; return its exit code (0 complete, 1 failed, 2 usage, 3 refused, 4 data, 128+N by signal N)."""
    from receiver.settings import parse
    from service import log
    from service.report import report
    from service.result import TransferResult

    try:
        settings, warnings = parse(argv, environ)
    except UsageError as error:
        logger = log.configure("receiver")
        report(TransferResult.without_transfer(error), None, logger)
        return error.exit_code
    logger = log.configure("receiver", settings.log_level)
    for warning in warnings:
        logger.warning("unknown_variable", reason=warning)
    try:
        return _serve(settings, logger)
    except FilestreamerError as error:
        report(TransferResult.without_transfer(error), settings.result_file, logger)
        return error.exit_code


def _serve(settings: "ReceiverSettings", logger: Any) -> int:
    """Serve until the work is done; return the exit code. Raises what ended the service otherwise."""
    from receiver import token
    from receiver.server import Server
    from receiver.settings import METRICS
    from receiver.stdout import Stdout
    from service.monitor import Monitor
    from service.progress import Progress
    from wire.transport import format_address

    _allow_descriptors()
    destination, output_name = (Stdout(), None) if settings.writes_stdout else _open_destination(settings)
    free_bytes = None if isinstance(destination, Stdout) else destination.free_bytes
    listeners = _listen(settings)
    if not isinstance(destination, Stdout):
        _clean_staging(settings, destination, logger)
    addresses = [listener.getsockname() for listener in listeners]
    secret = token.choose(settings, destination, [address[0] for address in addresses], logger)
    monitor = Monitor("receiver", settings, logger, free_bytes)
    server = Server(
        settings, destination, monitor, output_name=output_name, listeners=listeners, token=secret, log=logger
    )

    def end(number: int) -> None:
        server.end(Interrupted(number))
        monitor.release()

    signals.on_end(end)
    monitor.watch(server.counters, lambda: None, server.memory)
    monitor.start(METRICS)
    for address in addresses:
        logger.info("listening", address=format_address(address), directory=destination.path)
    if secret is not None and settings.token is None:
        _show_command(secret, addresses[0], tls=settings.tls_cert is not None)
    progress = Progress(server.counters, logger, direction="receiving")
    progress.start()
    try:
        return server.run()
    finally:
        progress.stop()
        monitor.finish()


def _open_destination(settings: "ReceiverSettings") -> "tuple[Destination, bytes | None]":
    """Open the destination directory; return it, and the name of the one file, if any. Raises TransferFailed."""
    from receiver.store import Destination, check_name

    directory, output_name = settings.directory, None
    if settings.output_file is not None:
        directory, name = os.path.split(os.path.abspath(settings.output_file))
        output_name = check_name(os.fsencode(name))
    destination = Destination(directory, replace=not settings.no_replace)
    if output_name is not None:
        destination.check_final(output_name)
    return destination, output_name


def _allow_descriptors() -> None:
    """Have as many descriptors as this process may: connections take one each, large files of a tree three."""
    import resource

    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _listen(settings: "ReceiverSettings") -> "list[socket.socket]":
    """Listen where the settings say. Raises UsageError."""
    from wire import transport

    try:
        return transport.listen(settings.listen.host, settings.listen.port)
    except OSError as error:
        raise UsageError(f"--listen {settings.listen}: {error.strerror}") from None
    except FilestreamerError as error:
        raise UsageError(f"--listen: {error}") from None


def _clean_staging(settings: "ReceiverSettings", destination: "Destination", logger: Any) -> None:
    """Discard what unfinished transfers left long ago, if that is wanted; say what is left to be resumed."""
    removed, left = destination.discard_older_than(settings.discard_staging_after, time.time())  # noqa: TID251 - file times
    if removed:
        logger.info("staging_discarded", files=removed)
    if left:
        logger.info("staging_found", files=left, hint="their senders resume them; --discard-staging-after cleans up")


def _show_command(token: str, address: tuple[object, ...], *, tls: bool) -> None:
    """Print the command that sends a file here; a wildcard address becomes this machine's name."""
    import socket

    from wire.transport import format_address

    if address[0] in ("0.0.0.0", "::"):
        address = (socket.gethostname(), address[1])
    secure = " --tls" if tls else ""
    print(f"send with:  FILESTREAMER_TOKEN={token} sender FILE --to {format_address(address)}{secure}", file=sys.stderr)


if __name__ == "__main__":
    main()
