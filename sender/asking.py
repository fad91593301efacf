"""A dry run with --to: asks the receiver how each entry stands there, and moves nothing (proto/README.md, "Dry runs").

One control connection, and no data connection. The receiver answers part by part; each entry is shown when it is
answered. With --checksum, and where the destination keeps no times, the receiver sends the digests of files of equal
size, and this end compares them.
"""

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Final

from filestreamer.process.log import printable
from filestreamer.process.threads import as_failure, start_thread
from filestreamer.telemetry.counters import Skipped, TransferCounters
from filestreamer.wire import limits
from filestreamer.wire import messages as m
from filestreamer.wire.codec import decode
from filestreamer.wire.digests import root_digest
from filestreamer.wire.errors import (
    Aborted,
    Code,
    ConnectionLost,
    Different,
    FilestreamerError,
    Interrupted,
    Partial,
    RemoteProtocolError,
    TransferFailed,
)
from filestreamer.wire.grid import Grid
from filestreamer.wire.opening import random_id
from filestreamer.wire.progress_clock import ProgressClock
from filestreamer.wire.sockets.control_link import ControlLink
from filestreamer.wire.sockets.route import Route
from filestreamer.wire.sockets.transport import Channel
from sender.listing.deletion import find_deletion
from sender.listing.listing import Listed, ListingThread
from sender.listing.skipped_entries import SkippedEntries
from sender.mailbox import Event, Failed, Mailbox, Signalled
from sender.network.control import MAILBOX_FRAMES, ControlDown, ControlReader, ControlUp, Received
from sender.network.control_state import ControlState
from sender.network.dial import Dialer
from sender.offer import make_offer, needed_features
from sender.presence import Presence
from sender.settings import SenderSettings
from sender.source.chunk_size import choose_chunk_size
from sender.source.item import Item, Unsendable
from sender.source.reader import Reader

TICK_SECONDS: Final = 1.0
GOODBYE_SECONDS: Final = 2.0
_KINDS: Final = {m.Standing.DECLINED: m.SkipKind.DECLINED, m.Standing.EXISTING: m.SkipKind.EXISTING}


class Asking:
    """Asks about what the settings name. Make it, and `run` it once."""

    def __init__(
        self, settings: SenderSettings, log: Any, show: Callable[[str], None], route: Route | None = None
    ) -> None:
        """`show` takes a line for each entry; `route` leads to the receiver (None: that to --to).

        Raises TransferFailed(SOURCE), UsageError.
        """
        self._settings = settings
        self._log = log
        self._show = show
        self._mailbox = Mailbox()
        self.counters = TransferCounters(random_id(), settings.name, files=0, tolerated=settings.tolerated)
        self.counters.verdicts = {}
        self._skipped = SkippedEntries(self.counters, log)
        self._deletion = find_deletion(settings)
        self._listing = ListingThread(settings, self._mailbox, self._skipped)
        single = self._listing.single
        self._chunk_size = choose_chunk_size(settings, single)
        self._dialer = Dialer(
            settings,
            self.counters.transfer_id,
            ControlState(),
            needed_features(settings, single, is_dry=True),
            log,
            route=route,
        )
        self._link = ControlLink("sender", MAILBOX_FRAMES, threading.Event())
        self._reader = ControlReader(self._dialer, self._link, self._mailbox, lambda: False)
        self._source = Reader()
        self._block = memoryview(bytearray(limits.BLOCK_BYTES))
        self._clock = ProgressClock(time.monotonic())
        self._trouble: FilestreamerError | None = None
        """Why the receiver could not be reached yet."""
        self._trouble_at = 0.0
        self._presence = Presence(settings.job, time.monotonic())
        self._listed: deque[tuple[list[Item], bool]] = deque([([single], True)] if single is not None else ())
        """Parts that were not sent yet, and whether each is the last."""
        self._open: deque[list[Item]] = deque()
        """Parts that were sent, and not answered in full."""
        self._first_open = 0
        """The file_id of the first entry of these."""
        self._next = 0
        """The file_id of the first entry without a verdict."""
        self._sent = 0
        """Entries that were sent."""
        self._sent_bytes = 0
        """Their sizes together: a receiver re-hashes no more."""
        self._compared: tuple[int, int, bool] | None = None
        """Of the file whose digests come: file_id, how many segments were compared, and whether all were equal."""
        self._answers: deque[Iterator[None]] = deque()
        """Answers that have come and are not taken yet, in order: it takes long to compare a large file."""
        self._is_complete = False

    def interrupt(self, signal_number: int) -> None:
        """End soon. For a signal handler."""
        self._link.is_hurried = True
        self._mailbox.post(Signalled(signal_number))

    def run(self) -> None:
        """Ask about everything. Raises the FilestreamerError that ended it."""
        try:
            start_thread(self._reader, "the control connection")
            while not self._is_complete:
                # Events go first: a signal, or the end of the receiver, does not wait until a large file is compared.
                event = self._mailbox.take(0.0 if self._answers else TICK_SECONDS)
                if event is not None:
                    self._act(event)
                elif self._answers:
                    self._go_on_with_first()
                self._tick()
            self.counters.phase = "complete"
        except Exception as error:
            failure = as_failure("asking", error)
            self._link.say_goodbye(failure)
            raise failure from error
        finally:
            self.counters.ended_at = time.monotonic()
            self._listing.stop()
            self._source.close()
            self._reader.stop(self._link.channel, GOODBYE_SECONDS)
            self._dialer.close()

    def shortfall(self) -> FilestreamerError | None:
        """Return why what was asked about would not be moved whole or, with --checksum, is not the same everywhere."""
        verdicts = self.counters.verdicts or {}
        if self.counters.failed_files:
            counts = sorted(self.counters.skipped_kinds.items())
            kinds = ", ".join(
                f"{count} {kind.name.lower()}" for kind, count in counts if self.counters.is_failure(kind)
            )
            return Partial(f"not everything would be moved: {kinds}")
        different = {standing: count for standing, count in verdicts.items() if standing is not m.Standing.SAME}
        if self._settings.checksum and different:
            kinds = ", ".join(f"{count} {standing.name.lower()}" for standing, count in sorted(different.items()))
            return Different(f"the two sides differ: {kinds}")
        return None

    # --- events

    def _act(self, event: Event) -> None:
        match event:
            case Received(body, channel):
                if channel is self._link.channel:
                    self._receive(decode(body))
            case Listed(items, last):
                # A directory that is mirrored is a tree, also where there is a single file in it: then more follows.
                is_cut = last and self._deletion is not None and len(items) == 1
                self._listed.extend([(items, False), ([], True)] if is_cut else [(items, last)])
                self._clock.reach("listed", self._sent + sum(len(part) for part, _ in self._listed), time.monotonic())
                self._go_on()
            case ControlUp(channel):
                self._offer(channel)
            case ControlDown(error):
                self._lose(error)
            case Failed(error):
                raise error
            case Signalled(signal_number):
                raise Interrupted(signal_number)
            case _:
                pass  # connected: the opening follows

    def _offer(self, channel: Channel) -> None:
        self._link.attach(channel)
        self._log.info("connected", address=channel.peer)
        single = self._listing.single
        self._link.say(make_offer(self._settings, self._chunk_size, single, self._deletion, is_dry=True))
        if single is None:
            start_thread(self._listing, "the walk")
        self._go_on()

    def _lose(self, error: FilestreamerError) -> None:
        """Try again, unless the receiver was reached before: what it has answered may not hold any more."""
        if self._link.channel is not None:
            raise error
        if str(error) != str(self._trouble):
            self._log.warning("cannot_connect", reason=str(error))
        self._trouble, self._trouble_at = error.with_traceback(None), time.monotonic()

    def _go_on(self) -> None:
        """Send parts, as many as may be unanswered; after the last answer, say Finish."""
        while self._listed and len(self._open) < limits.MANIFEST_PARTS_UNANSWERED and self._link.state == "manifest":
            items, last = self._listed.popleft()
            self._link.say(m.ManifestPart(self._sent, tuple([item.entry._replace(xattrs=()) for item in items]), last))
            self._sent += len(items)
            self._sent_bytes += sum(item.entry.size for item in items)
            self._open.append(items)
            self.counters.phase = "moving"
        while self._open and self._next >= self._first_open + len(self._open[0]):
            self._first_open += len(self._open.popleft())
            self._listing.make_room(1)
            self._go_on()
        if self._link.state == "moving" and not self._open:
            self._link.say(self.counters.heartbeat())
            self._link.say(m.Finish(0, root_digest([]), 0, *self._skipped.for_finish()))

    # --- messages of the receiver

    def _receive(self, message: m.Message) -> None:
        self._link.received(message)
        if isinstance(message, m.Verdicts | m.Held):
            self._answers.append(self._take_all(message) if isinstance(message, m.Verdicts) else self._compare(message))
            if len(self._answers) == 1:  # else a file is being compared
                self._go_on_with_first()
            return
        self._link.acted()
        match message:
            case m.Notice():
                for text in message.texts:
                    self._skipped.warn(text)
            case m.Progress():
                now, most, step = time.monotonic(), self._sent_bytes, limits.REHASH_STEP_BYTES
                self._clock.reach("peer_rehashed", message.rehashed_bytes, now, most=most, step=step)
            case m.Complete():
                if message.committed or self._link.state != "complete" or self._open or self._listed:
                    raise RemoteProtocolError("the receiver has committed what was only asked about")
                self._is_complete = True
            case m.Abort():
                raise Aborted(message.code, message.reason)
            case _:
                raise RemoteProtocolError(f"{type(message).__name__} is no answer to a dry run")

    def _go_on_with_first(self) -> None:
        """Take the next step of the first answer; behind the last one, there is room for another frame."""
        try:
            next(self._answers[0])
        except StopIteration:
            self._answers.popleft()
            self._link.acted()

    def _take_all(self, message: m.Verdicts) -> Iterator[None]:
        """Count and show how entries stand, in one step."""
        for verdict in message.entries:
            self._take(verdict)
        self._go_on()
        yield from ()

    def _take(self, verdict: m.EntryVerdict) -> None:
        if verdict.standing is m.Standing.EXTRA:
            if self._deletion is None:
                raise RemoteProtocolError("the receiver would remove something, which was not asked for")
            self.counters.count_verdict(verdict.standing)
            self._line(verdict.standing, "", "", verdict.path, verdict.reason)
            verdicts = self.counters.verdicts or {}
            self._clock.reach("extra", verdicts[m.Standing.EXTRA], time.monotonic())
            return
        if verdict.file_id != self._next or verdict.file_id + verdict.files > self._sent:
            raise RemoteProtocolError(f"a verdict on file {verdict.file_id}, where {self._next} is next")
        for _ in range(verdict.files):
            self._judge(self._item(self._next), verdict)
            self._next += 1
        self._clock.reach("answered", self._next, time.monotonic())

    def _item(self, file_id: int) -> Item:
        at = file_id - self._first_open
        for items in self._open:
            if at < len(items):
                return items[at]
            at -= len(items)
        raise RemoteProtocolError(f"the receiver answers file {file_id}, which was not offered")

    def _judge(self, item: Item, verdict: m.EntryVerdict) -> None:
        """Count and show how an entry stands."""
        compared, self._compared = self._compared, None
        entry, standing, reason = item.entry, verdict.standing, verdict.reason
        if compared is not None:
            segments = Grid(entry.size, self._chunk_size).segments
            if compared == (self._next, segments, True):
                standing, reason = m.Standing.SAME, ""
        if entry.type is m.EntryType.KEPT:
            return
        self.counters.count_verdict(standing)
        self.counters.files += entry.type is m.EntryType.FILE
        self.counters.size_bytes += item.sent_bytes
        if kind := _KINDS.get(standing):
            self._skipped.add(Skipped(item.shown, reason, kind, entry.path))
        self._line(standing, entry.type.name.lower(), str(entry.size), entry.path, reason)

    def _line(self, standing: m.Standing, kind: str, size: str, path: bytes, reason: str) -> None:
        why = f": {printable(reason)}" if reason else ""
        self._show(f"{standing.name.lower():9} {kind:9} {size:>15} {printable(os.fsdecode(path))}{why}")

    # --- comparing

    def _compare(self, held: m.Held) -> Iterator[None]:
        """Compare digests of the next file with the source, each in one step.

        They come with --checksum, and where times tell nothing.
        """
        if held.file_id != self._next or held.unchecked or held.left or held.files:
            raise RemoteProtocolError(f"digests of file {held.file_id}, which nobody asked for")
        item = self._item(held.file_id)
        _, at, is_equal = self._compared or (held.file_id, 0, True)
        grid = Grid(item.entry.size, self._chunk_size)
        end = at + len(held.digests) // limits.DIGEST_BYTES
        if held.first_segment != at or end > grid.segments:
            raise RemoteProtocolError(f"digests of segments {held.first_segment} to {end - 1} of file {held.file_id}")
        for index in range(at, end):
            if not is_equal:
                break
            place = (index - at) * limits.DIGEST_BYTES
            try:
                is_equal = self._digest(item, grid, index) == held.digests[place : place + limits.DIGEST_BYTES]
            except Unsendable as error:
                is_equal = False
                self._skipped.add(Skipped(item.shown, error.why, error.kind, item.entry.path))
            yield
        self._compared = (held.file_id, end, is_equal)

    def _digest(self, item: Item, grid: Grid, index: int) -> bytes:
        """Return the digest of a segment of the source. Raises Unsendable where the file is not what was listed."""
        digest = self._source.digest(item, grid.offset(index), grid.length(index), self._block, self._count_read)
        self._source.look(item)
        return digest

    def _count_read(self, count: int) -> None:
        self.counters.rehashed_bytes += count
        self._clock.reach("rehashed", self.counters.rehashed_bytes, time.monotonic())
        self._tick()

    # --- the clock

    def _tick(self) -> None:
        now = time.monotonic()
        self.counters.passed_over_files = self._listing.passed_over
        self._clock.reach("passed_over", self.counters.passed_over_files, now)
        if self._link.is_heartbeat_due(now):
            self._link.say(self.counters.heartbeat())
        channel = self._link.channel
        if channel is not None and now - channel.heard_at > limits.DEAD_SECONDS:
            raise ConnectionLost(f"{channel.peer} was silent for {limits.DEAD_SECONDS:.0f} s")
        self._presence.check(now, is_connected=channel is not None, trouble=self._trouble, trouble_at=self._trouble_at)
        most_seconds = self._settings.patience.seconds(has_begun=self._next > 0)
        if now - self._clock.at > most_seconds:
            trouble = f" ({self._trouble})" if self._trouble is not None and channel is None else ""
            raise TransferFailed(
                Code.TIMEOUT,
                f"gave up after {most_seconds:g} s without progress, waiting for {self._waits_for()}{trouble}",
            )

    def _waits_for(self) -> str:
        if self._link.channel is None:
            return self._dialer.waits_for()
        if self._link.state == "finishing":
            return "the receiver to list what it would remove"
        if self._open:
            return f"the receiver's answer to {self._sent - self._next} entries"
        return "the source: its directories are being listed"
