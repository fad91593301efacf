"""The one run of a receiver with --once: what it has committed, and whether its partner has ended for good.

With --run, what was committed is kept as a receipt, before the sender learns of it. So a receiver that is killed after
that, and started again for the same run, knows that nothing may come any more. It still waits for a while: a sender
that has not heard of the end comes back, and is answered from what is there, as ever.

With --job, a sender that ends for a reason that trying again does not change ends this receiver, too.
"""

from typing import Any, Final

from filestreamer.telemetry.report import report
from filestreamer.telemetry.result import TransferResult
from filestreamer.wire.errors import Absent, Code, FilestreamerError, TransferFailed
from receiver.disk.destination import Destination
from receiver.disk.staging.receipt import Receipt
from receiver.pipe.standard_output import OpenFile
from receiver.settings import ReceiverSettings
from receiver.transfer.transfer import Transfer

RETURN_SECONDS: Final = 120.0
"""How long a receiver that is done waits for a sender that does not know: as long as a pod takes to be replaced."""


class Run:
    """How one run of a receiver ends. Any thread may call `keep`; the caller of the rest has a lock."""

    def __init__(self, settings: ReceiverSettings, destination: Destination | OpenFile, log: Any) -> None:
        """Look for the receipt of this run. Raises TransferFailed(DESTINATION)."""
        self._settings = settings
        self._log = log
        self._receipt: Receipt | None = None
        self._kept: tuple[TransferResult, str] | None = None  # the result of an earlier process, and the name
        self._failure: FilestreamerError | None = None
        self._is_reported = False  # whether a result was reported with the failure
        if settings.run is not None and isinstance(destination, Destination):
            self._receipt = Receipt(destination, settings.run, settings.job or "")
            self._kept = self._read(self._receipt)

    def _read(self, receipt: Receipt) -> tuple[TransferResult, str] | None:
        kept = receipt.read()
        if kept is None:
            return None
        try:
            result, name = TransferResult.from_fields(kept["fields"]), str(kept["file"])
        except (TypeError, KeyError, AttributeError):
            return None
        self._log.info(
            "receipt_found",
            run=self._settings.run,
            hint=f"an earlier process of this run has received everything; this one ends in {RETURN_SECONDS:g} s, or"
            " when it has answered a sender that does not know yet",
        )
        return result, name

    def keep(self, transfer: Transfer) -> None:
        """Keep the result of a transfer that has put everything in place."""
        if self._receipt is None:
            return
        outcome = TransferResult.from_counters(
            transfer.counters, error=transfer.counters.shortfall(), committed=True, root_digest=transfer.root_digest
        )
        try:
            self._receipt.keep({"file": transfer.counters.name, "fields": outcome.fields()})
        except TransferFailed as error:  # only a receiver that is killed now misses it
            self._log.warning("receipt_not_kept", reason=str(error))

    def note_failure(self, transfer: Transfer, error: FilestreamerError | None) -> None:
        """Take in how a transfer has ended that is not complete."""
        is_proven = self._settings.once and self._settings.job is not None and transfer.token is not None
        if not is_proven or error is None or not error.ends_job:
            return
        if transfer.counters.verdicts is None:  # a dry run is not what this receiver waits for
            self._failure, self._is_reported = error.with_traceback(None), transfer.opener.was_offered

    def ended(self, idle_seconds: float) -> tuple[int, FilestreamerError | None] | None:
        """Return how the run has ended if it has: the exit code, and an error that is to be reported.

        There has been no transfer for `idle_seconds`.
        """
        if self._failure is not None and idle_seconds > 0:  # with shards, all that are here have ended
            return self._failure.exit_code, None if self._is_reported else self._failure
        if self._kept is not None and idle_seconds > RETURN_SECONDS:
            result, name = self._kept
            report(result, self._settings.result_file, self._log, file=name)
            return result.exit_code, None
        timeout = self._settings.idle_timeout
        if timeout is not None and idle_seconds > timeout:
            return self._idle(timeout)
        return None

    def _idle(self, timeout: float) -> tuple[int, FilestreamerError]:
        error: FilestreamerError = TransferFailed(Code.TIMEOUT, f"no transfer for {timeout:g} s (--idle-timeout)")
        if self._settings.once and self._settings.job is not None:
            error = Absent.waited_for("sender", self._settings.job, timeout, "receiver")
        return error.exit_code, error
