"""The `sender` command: reads its settings, runs one transfer, reports the result, and returns the exit code."""

import contextlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NoReturn, Self

from filestreamer.process import descriptors, garbage, signals, stderr
from filestreamer.wire.errors import FilestreamerError, Interrupted

if TYPE_CHECKING:
    from filestreamer.telemetry.monitor import Monitor
    from filestreamer.telemetry.result import TransferResult
    from filestreamer.wire.sockets.route import Route
    from sender.coordinator import Transfer
    from sender.server.token import Chosen
    from sender.settings import SenderSettings


LIST_CHARACTERS: Final = 8192
"""How many characters of the list of --dry-run are written together."""
_BEGINS_AGAIN: Final = "the receiver no longer knows this transfer; starting over, finished files are kept"


def main() -> NoReturn:
    """Run the command with this process's arguments and environment, and exit."""
    stderr.replace()
    signals.exit_on_signal()
    garbage.collect_seldom()
    over_ssh = {"serve": _serve_over_ssh, "relay": _relay}.get(sys.argv[1]) if len(sys.argv) == 2 else None
    signals.exit_process(over_ssh() if over_ssh is not None else run(sys.argv[1:], os.environ))


def _serve_over_ssh() -> int:
    """Send to a receiver that has started this over ssh; return the exit code."""
    with signals.deferred():
        from sender import far_side
    descriptors.allow_all()
    return far_side.run()


def _relay() -> int:
    """Carry one connection of a receiver to the sender that it has started over ssh; return the exit code."""
    from filestreamer.ssh.relay import relay

    return relay()


def run(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """Run the command; return its exit code (0 complete, 1 failed, 2 usage, 3 refused, 4 data, 5 partial, 128+N)."""
    try:
        with signals.deferred():
            from filestreamer.process import log
            from filestreamer.process.threads import as_failure, log_defects
            from filestreamer.telemetry.monitor import Monitor
            from filestreamer.telemetry.report import begin, report, reporting_overdue
            from filestreamer.telemetry.result import TransferResult
            from sender.settings import parse
        with signals.raised():
            settings, warnings = parse(argv, environ)
        with signals.deferred():
            logger = log.configure("sender", settings.log_level)
    except Exception as error:  # noqa: BLE001 - the top of the command: whatever happens, a result is reported
        return _fail(error, argv, environ)
    log_defects(logger)
    for warning in warnings:
        logger.warning("unknown_variable", reason=warning)
    for warning in settings.exposed():
        logger.warning("secret_exposed", reason=warning)
    if settings.dry_run:
        return _list(settings, logger) if settings.to is None else _ask(settings, logger)
    begin(settings.result_file, logger)
    if settings.listen is not None:
        return _serve(settings, logger)
    monitor = Monitor("sender", settings, logger)

    overdue = reporting_overdue(settings.result_file, logger)
    with contextlib.ExitStack() as until_reported:
        try:
            outcome = _send(settings, logger, monitor, overdue, until_reported)
        except Exception as error:  # noqa: BLE001 - the top of the command
            outcome = TransferResult.without_transfer(as_failure("sending", error))
        report(outcome, settings.result_file, logger, file=settings.input_files[0])
    monitor.push()  # after the result, which does not wait for a gateway
    monitor.stop()
    return outcome.exit_code


def _fail(error: Exception, argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """Report an error from before the settings are known; return the exit code."""
    # Imported again, as the error may be a signal in the middle of that.
    from filestreamer.telemetry.report import report_early

    return report_early(error, "sender", argv, environ)


def _send(
    settings: "SenderSettings",
    logger: Any,
    monitor: "Monitor",
    overdue: Callable[[int], None],
    until_reported: contextlib.ExitStack,
) -> "TransferResult":
    """Run the transfer, and transfers that continue it; return how it ended.

    `overdue` is called with the number of the signal if the transfer has not ended in time after a signal. A receiver
    that is started over ssh ends with `until_reported`. Raises what kept a transfer from being begun.
    """
    signalled, is_over = list[int](), False

    def end(number: int) -> None:
        signalled.append(number)
        transfer.interrupt(number)
        monitor.stop_lingering()

    with signals.deferred():
        from filestreamer.telemetry.result import TransferResult
        from filestreamer.terminal.display import ProgressDisplay
        from sender.coordinator import BeginAgain
        from sender.push import reached
    with signals.raised():
        monitor.start()
        settings, route = until_reported.enter_context(reached(settings, logger))
        transfer = _begin(settings, logger, route)
        signals.on_signal(end, lambda number: None if is_over else overdue(number))
    monitor.watch(lambda: [transfer.counters], lambda: None if transfer.is_connected else "no receiver yet")
    progress = ProgressDisplay(lambda: [transfer.counters], logger, direction="sending")
    progress.start()
    transfer.on_few_threads = progress.stop  # a transfer needs a thread more than the display does
    failure: FilestreamerError | None = None
    committed: bool | None = None
    try:
        while committed is None:
            try:
                committed = transfer.run()
            except BeginAgain:
                transfer = _again(transfer, logger, monitor)
                for number in signalled[:1]:
                    transfer.interrupt(number)
        failure = transfer.counters.shortfall()
    except FilestreamerError as error:
        failure = error
        _say_why(settings, error, logger, route, lambda: bool(signalled or transfer.has_said_why))
    finally:
        progress.stop()
        is_over = True
    outcome = TransferResult.from_counters(
        transfer.counters, error=failure, committed=bool(committed), root_digest=transfer.root_digest
    )
    monitor.ended(transfer.counters, outcome.status)
    return outcome


def _again(transfer: "Transfer", logger: Any, monitor: "Monitor") -> "Transfer":
    """Return the transfer that continues one."""
    logger.warning("transfer_begins_again", reason=_BEGINS_AGAIN)
    monitor.replaced(transfer.counters)
    return transfer.again()


def _begin(settings: "SenderSettings", logger: Any, route: "Route | None") -> "Transfer":
    """Make a transfer. What keeps it from being begun is told to the receiver of a job, and raised."""
    from sender.coordinator import Transfer

    try:
        return Transfer(settings, logger, route=route)
    except FilestreamerError as error:
        _say_why(settings, error, logger, route, lambda: False)
        raise


def _say_why(
    settings: "SenderSettings",
    error: FilestreamerError,
    logger: Any,
    route: "Route | None",
    is_over: Callable[[], bool],
) -> None:
    """Tell the receiver of a job that this sender ends for good, if it does, until that `is_over`."""
    if settings.job is None:
        return
    from sender.farewell import say_why

    say_why(settings, error, logger, route, is_over)


def _serve(settings: "SenderSettings", logger: Any) -> int:
    """Send to each receiver that connects, until the work is done; report how that ended, and return the exit code."""
    from filestreamer.process.threads import as_failure
    from filestreamer.telemetry.report import report
    from filestreamer.telemetry.result import TransferResult

    try:
        return _listen(settings, logger)
    except Exception as error:  # noqa: BLE001 - the top of the command
        failure = as_failure("serving", error)
        report(TransferResult.without_transfer(failure), settings.result_file, logger)
        return failure.exit_code


def _listen(settings: "SenderSettings", logger: Any) -> int:
    """Serve; return the exit code. Raises what ends the service otherwise."""
    assert settings.listen is not None
    with signals.deferred():
        from filestreamer.credentials import certificate
        from filestreamer.listening.listeners import open_listeners
        from filestreamer.telemetry.monitor import Monitor
        from filestreamer.telemetry.report import reporting_overdue
        from filestreamer.terminal.display import ProgressDisplay
        from sender.server import token
        from sender.server.server import Server
    with signals.raised():
        descriptors.allow_all()
        listeners = open_listeners(*settings.listen, str(settings.listen), logger)
        addresses = [listener.socket.getsockname() for listener in listeners]
        hosts = [str(address[0]) for address in addresses]
        chosen = token.choose(settings, hosts)
        monitor = Monitor("sender", settings, logger)
        server = Server(
            settings,
            monitor,
            listeners=listeners,
            token=token.current(chosen, settings, logger),
            tls=certificate.current(settings, hosts, chosen.token, logger, "sender"),
            log=logger,
        )

        def stop(number: int) -> None:
            server.stop(Interrupted(number))
            monitor.stop_lingering()

        monitor.watch(server.counters, lambda: None)
        monitor.start()
        signals.on_signal(stop, reporting_overdue(settings.result_file, logger))
    _report_start(settings, addresses, chosen, logger)
    progress = ProgressDisplay(server.counters, logger, direction="sending")
    progress.start()
    server.on_few_threads = progress.stop  # a transfer needs a thread more than the display does
    try:
        return server.run()
    finally:
        progress.stop()
        monitor.stop()


def _report_start(settings: "SenderSettings", addresses: list[Any], chosen: "Chosen", logger: Any) -> None:
    """Log where this sender listens, and what its receivers need to be let in."""
    from filestreamer.wire.sockets.addresses import format_address

    for address in addresses:
        logger.info("listening", address=format_address(address))
    secure = ", and --tls" if settings.tls else ""
    if chosen.path is not None:
        logger.info("token", path=chosen.path, hint=f"this user's receivers on this machine find it themselves{secure}")
    elif chosen.is_new:
        from filestreamer.listening.command import show_command

        show_command("receive", "filestreamer-receiver --connect", chosen.token, addresses[0], tls=settings.tls)


def _ask(settings: "SenderSettings", logger: Any) -> int:
    """Print how each entry stands at the receiver, then the result; return the exit code."""
    from filestreamer.process.threads import as_failure
    from filestreamer.telemetry.report import begin, report, reporting_overdue
    from filestreamer.telemetry.result import TransferResult
    from sender.asking import Asking
    from sender.push import reached

    lines = _Lines()
    begin(settings.result_file, logger)
    overdue = reporting_overdue(settings.result_file, logger)
    failure: FilestreamerError | None
    with contextlib.ExitStack() as until_reported:
        try:
            with signals.raised():
                settings, route = until_reported.enter_context(reached(settings, logger))
                asking = Asking(settings, logger, lines.add, route)
                signals.on_signal(asking.interrupt, overdue)
        except Exception as error:  # noqa: BLE001 - the top of the command
            outcome = TransferResult.without_transfer(as_failure("asking", error))
            report(outcome, settings.result_file, logger)
            return outcome.exit_code
        try:
            with lines:
                asking.run()
                failure = asking.shortfall()
        except FilestreamerError as error:
            failure = error
        except OSError as error:
            failure = FilestreamerError(f"can't write the list: {error.strerror}")
        outcome = TransferResult.from_counters(asking.counters, error=failure, committed=False, root_digest=None)
        report(outcome, settings.result_file, logger, file=settings.input_files[0])
    return outcome.exit_code


class _Lines:
    """Lines on standard output: each at once on a terminal, else some thousand characters together, by the block's end.

    `print` loses text where another process made standard output non-blocking, and fails where it is closed, or has an
    encoding without a character of a name.
    """

    def __init__(self) -> None:
        self._text = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.flush()

    def add(self, line: str) -> None:
        """Write a line, now or later. Raises OSError."""
        self._text += f"{line}\n"
        if len(self._text) >= LIST_CHARACTERS or (sys.stdout is not None and sys.stdout.isatty()):
            self.flush()

    def flush(self) -> None:
        """Write what was not written yet. Raises OSError."""
        from filestreamer.telemetry.result import show_text

        text, self._text = self._text, ""
        if sys.stdout is not None and text:
            show_text(text, sys.stdout)


def _list(settings: "SenderSettings", logger: Any) -> int:
    """Print a line for each entry that would be offered; return the exit code."""
    from filestreamer.process.log import printable
    from filestreamer.telemetry.counters import TransferCounters
    from filestreamer.wire.errors import Exit
    from filestreamer.wire.messages import EntryType
    from sender.listing.deletion import find_deletion
    from sender.listing.listing import make_walk, read_files_from
    from sender.listing.skipped_entries import SkippedEntries

    lines = _Lines()
    counters = TransferCounters(b"", settings.name, tolerated=settings.tolerated)
    try:
        find_deletion(settings)  # raises UsageError where there is nothing to be mirrored
        with lines:
            for item in make_walk(settings, SkippedEntries(counters, logger), read_files_from(settings)):
                if item.entry.type is EntryType.KEPT:  # its name is offered, for --delete, and nothing of it
                    continue
                kind = item.entry.type.name.lower()
                lines.add(f"{kind:9} {item.entry.size:>15} {printable(os.fsdecode(item.entry.path))}")
    except FilestreamerError as error:
        logger.error("dry_run_failed", reason=str(error))
        return error.exit_code
    except OSError as error:
        logger.error("dry_run_failed", reason=f"can't write the list: {error.strerror}")
        return Exit.FAILED
    return Exit.PARTIAL if counters.failed_files else Exit.COMPLETE


if __name__ == "__main__":
    main()
