"""The `sender` command: reads its settings, runs one transfer, reports the result, and returns the exit code."""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from filestreamer.process import signals, stderr
from filestreamer.wire.errors import FilestreamerError, Interrupted

if TYPE_CHECKING:
    from filestreamer.telemetry.monitor import Monitor
    from filestreamer.telemetry.result import TransferResult
    from sender.settings import SenderSettings


def main() -> NoReturn:
    """Run the command with this process's arguments and environment, and exit."""
    stderr.replace()
    signals.exit_on_signal()
    signals.exit_process(run(sys.argv[1:], os.environ))


def run(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """Run the command; return its exit code (0 complete, 1 failed, 2 usage, 3 refused, 4 data, 5 partial, 128+N)."""
    try:
        with signals.deferred():
            from filestreamer.process import log
            from filestreamer.process.threads import as_failure, log_defects
            from filestreamer.telemetry.monitor import Monitor
            from filestreamer.telemetry.report import begin, report
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
    monitor = Monitor("sender", settings, logger)

    def overdue(number: int) -> None:
        report(TransferResult.without_transfer(Interrupted(number)), settings.result_file, logger)

    try:
        outcome = _send(settings, logger, monitor, overdue)
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
    settings: "SenderSettings", logger: Any, monitor: "Monitor", overdue: Callable[[int], None]
) -> "TransferResult":
    """Run the transfer, and transfers that continue it; return how it ended.

    `overdue` is called with the number of the signal if the transfer has not ended in time after a signal.
    """
    from filestreamer.telemetry.result import TransferResult

    signalled, is_over = list[int](), False

    def end(number: int) -> None:
        signalled.append(number)
        transfer.interrupt(number)
        monitor.stop_lingering()

    try:
        with signals.deferred():
            from filestreamer.terminal.display import ProgressDisplay
            from sender.coordinator import BeginAgain, Transfer
        with signals.raised():
            monitor.start()
            transfer = Transfer(settings, logger)
            signals.on_signal(end, lambda number: None if is_over else overdue(number))
    except FilestreamerError as error:
        return TransferResult.without_transfer(error)
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
                logger.warning(
                    "transfer_begins_again",
                    reason="the receiver no longer knows this transfer; starting over, finished files are kept",
                )
                transfer = transfer.again()
                if signalled:
                    transfer.interrupt(signalled[0])
        failure = transfer.counters.shortfall()
    except FilestreamerError as error:
        failure = error
    finally:
        progress.stop()
        is_over = True
    outcome = TransferResult.from_counters(
        transfer.counters, error=failure, committed=bool(committed), root_digest=transfer.root_digest
    )
    monitor.ended(transfer.counters, outcome.status)
    return outcome


def _ask(settings: "SenderSettings", logger: Any) -> int:
    """Print how each entry stands at the receiver, then the result; return the exit code."""
    from filestreamer.process.threads import as_failure
    from filestreamer.telemetry.report import begin, report
    from filestreamer.telemetry.result import TransferResult
    from sender.asking import Asking

    begin(settings.result_file, logger)
    failure: FilestreamerError | None
    try:
        asking = Asking(settings, logger, print)
    except Exception as error:  # noqa: BLE001 - the top of the command
        outcome = TransferResult.without_transfer(as_failure("asking", error))
        report(outcome, settings.result_file, logger)
        return outcome.exit_code

    def overdue(number: int) -> None:
        report(TransferResult.without_transfer(Interrupted(number)), settings.result_file, logger)

    signals.on_signal(asking.interrupt, overdue)
    try:
        asking.run()
        failure = asking.shortfall()
        sys.stdout.flush()
    except FilestreamerError as error:
        failure = error
    except OSError as error:
        failure = FilestreamerError(f"can't write the list: {error.strerror}")
    outcome = TransferResult.from_counters(asking.counters, error=failure, committed=False, root_digest=None)
    report(outcome, settings.result_file, logger, file=settings.input_files[0])
    return outcome.exit_code


def _list(settings: "SenderSettings", logger: Any) -> int:
    """Print a line for each entry that would be offered; return the exit code."""
    from filestreamer.process.log import printable
    from filestreamer.telemetry.counters import TransferCounters
    from filestreamer.wire.errors import Exit
    from filestreamer.wire.messages import EntryType
    from sender.listing.deletion import find_deletion
    from sender.listing.listing import make_walk, read_files_from
    from sender.listing.skipped_entries import SkippedEntries

    counters = TransferCounters(b"", settings.name, tolerated=settings.tolerated)
    try:
        find_deletion(settings)  # raises UsageError where there is nothing to be mirrored
        for item in make_walk(settings, SkippedEntries(counters, logger), read_files_from(settings)):
            if item.entry.type is EntryType.KEPT:  # its name is offered, for --delete, and nothing of it
                continue
            kind = item.entry.type.name.lower()
            print(f"{kind:9} {item.entry.size:>15} {printable(os.fsdecode(item.entry.path))}")
        sys.stdout.flush()
    except FilestreamerError as error:
        logger.error("dry_run_failed", reason=str(error))
        return error.exit_code
    except OSError as error:
        logger.error("dry_run_failed", reason=f"can't write the list: {error.strerror}")
        return Exit.FAILED
    return Exit.PARTIAL if counters.failed_files else Exit.COMPLETE


if __name__ == "__main__":
    main()
