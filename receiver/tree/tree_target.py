"""A tree, as the coordinator sees it: parts of the manifest come in, answers go out, and at the end all is committed.

A part is taken up whole, and is active while any file of it is pending (`part_table`). PARTS_ACTIVE of them are active
at once, all but one in borrowed memory. Further parts wait in the archive, unanswered: that holds the
sender back, which lists only a few parts ahead of the answers.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from filestreamer.telemetry.counters import TransferCounters
from filestreamer.wire import limits
from filestreamer.wire import messages as m
from filestreamer.wire.digests import root_digest
from filestreamer.wire.errors import Code, FilestreamerError, RemoteProtocolError, TransferFailed, from_os_error
from receiver.disk.attributes.attributes import Attributes
from receiver.disk.destination import shown_path
from receiver.disk.existing import policy
from receiver.disk.report import Report
from receiver.file.answers import needed_messages
from receiver.file.rehash import FinalsRehashed, Rehashed, Rehasher
from receiver.file.states import CLAIMED, DECLINED, FREE, HELD, NOTHING, UNCHECKED, VERIFIED, WITHDRAWN, WRITING
from receiver.file.target import LEAVE_SECONDS, NextStep
from receiver.memory.budget import Account
from receiver.tree.answers import FileRanges, answers, held_files, held_messages, missing
from receiver.tree.commit.committer import Committer
from receiver.tree.commit.declines import Declines
from receiver.tree.commit.tree_staging import TreeStagings
from receiver.tree.entries.entry_preparer import EntryPreparer
from receiver.tree.large_files import WAIT_SECONDS, LargeFiles
from receiver.tree.manifest.archive import Archive, memory_bytes
from receiver.tree.manifest.large_file import Spooled
from receiver.tree.manifest.part_state import PartState
from receiver.tree.manifest.spool import Spool
from receiver.tree.mirror.deleter import Deleter
from receiver.tree.part_preparer import PartPreparer
from receiver.tree.part_table import PartTable
from receiver.tree.top_level_names import TopLevelNames
from receiver.tree.tree_shard import NO_SHARD, Shard, TreeShard
from receiver.tree.tree_writer import TreeWriter

PARTS_ACTIVE: Final = 64
NOTHING_CAME: Final = "nothing has come: the source is empty, or not mounted, or all in it is left out"
STEP_BYTES: Final = 256 * limits.KIB
"""Memory that grows with the manifest, a few bytes for each part and name, is borrowed in steps of this size."""


class TreeTarget:
    """Receives one tree. The coordinator calls it, in one thread at a time; data connections use `chunks`."""

    _is_committed = False
    _is_over = False
    _taken_up = 0
    """Number of parts that were taken up; the parts behind them wait."""
    _withdrawn_early = 0
    """Number of files that were withdrawn while their parts wait."""

    def __init__(
        self,
        offer: m.Offer,
        top_level_names: TopLevelNames,
        *,
        root: bytes,
        job: str = "",
        run: str = "",
        account: Account,
        counters: TransferCounters,
        rehasher: Rehasher,
        failed: Callable[[FilestreamerError], None],
        nudge: Callable[[], object],
        report: Report,
        log: Any,
    ) -> None:
        """`root` is the first component of the first path, and is claimed in `top_level_names`.

        `job` groups shards, in one `run` of the receiver.

        `report` is told what can't be done; `failed` ends the transfer, `nudge` has the coordinator ask for `more`: any
        thread may call them. Raises TransferFailed.
        """
        self.name = root
        self._offer = offer
        self._account = account
        self._destination = destination = top_level_names.destination
        self._top_level_names = top_level_names
        self._counters = counters
        self._log = log
        self._deleter: Deleter | None = None
        if offer.delete is not None:
            self._deleter = Deleter(offer.delete, top_level_names, report, counters, log)
        self._shard: Shard = NO_SHARD if offer.shard is None else TreeShard(offer, offer.shard, job, run, destination)
        self._stagings = TreeStagings(destination, root, report, self._shard.staging_name)
        with contextlib.ExitStack() as opened:
            opened.callback(self._stagings.close)
            self._shard.begin(self._stagings.top.traits)
            self._spool = Spool(self._stagings.top.files_fd, destination.path)
            opened.callback(self._spool.close)
            self._index = Spool(self._stagings.top.files_fd, destination.path)
            opened.callback(self._index.close)
            self._declines = declines = Declines(report, top_level_names, counters)
            self._committer = Committer(
                destination,
                self._stagings,
                top_level_names,
                declines,
                failed,
                policy=policy(offer, replace=destination.replace),
                waits=self._shard.waits,
            )
            self._committer.start()
            opened.pop_all()
        report.store = self._spool
        self._archive = Archive(self._spool, self._index, offer.chunk_size, self._shard.shares)
        attributes = Attributes(
            declines,
            allow_privileged=destination.allow_privileged,
            xattrs_of=self._archive.xattrs if offer.xattrs else None,
        )
        self._entry_preparer = EntryPreparer(
            destination,
            self._stagings,
            self._committer,
            top_level_names,
            self._archive,
            attributes=attributes,
            declines=declines,
            policy=self._committer.policy,
            checksum=offer.checksum,
        )
        self._large_files = LargeFiles(
            offer.chunk_size,
            destination,
            self._stagings,
            self._committer,
            attributes=attributes,
            declines=declines,
            spool=self._spool,
            account=account,
            counters=counters,
            failed=failed,
            nudge=nudge,
        )
        self._parts = PartTable(offer.chunk_size, self._archive, self._large_files, account)
        self._part_preparer = PartPreparer(
            offer,
            destination,
            self._stagings.places,
            self._entry_preparer,
            archive=self._archive,
            parts=self._parts,
            account=account,
            large_files=self._large_files,
            rehasher=rehasher,
            counters=counters,
            shares=self._shard.shares,
        )
        self.chunks = TreeWriter(
            offer.chunk_size,
            self._parts,
            self._large_files,
            self._stagings,
            self._committer,
            attributes=attributes,
            declines=declines,
            spool=self._spool,
            nudge=nudge,
        )
        self._expected: int | None = 0
        """The first file_id of the next part; None after control was opened anew: any known part may come."""
        self._latest: tuple[int, m.ManifestPart] | None = None
        """Number of the latest part, and the part: it need not be read back from the archive."""
        self._owned_bytes = STEP_BYTES
        """Memory for what grows with the manifest: the first step is the transfer's own, the others are borrowed."""
        counters.name, counters.files = shown_path(destination, root), 0
        log.info("transfer_started", tree=counters.name, **self._shard.shown)

    # --- parts of the manifest

    def take_part(self, part: m.ManifestPart, body: bytes) -> Iterator[m.Message]:
        """Keep a new part, and answer it as soon as it is taken up; answer a known part with what is known now."""
        archive = self._archive
        if self._expected is not None and part.first_file_id != self._expected:
            raise RemoteProtocolError(f"a part begins with file {part.first_file_id}, not with {self._expected}")
        self._expected = part.first_file_id + len(part.entries)
        if part.first_file_id > archive.entries:
            reason = "this receiver does not have the parts of the manifest before this one"
            raise TransferFailed(Code.UNKNOWN_TRANSFER, reason)
        number = archive.beginning_with(part.first_file_id)
        if number is None and (part.first_file_id != archive.entries or archive.is_listed):
            raise RemoteProtocolError("the manifest is listed again, and differs from the first time")
        if number is None:
            if self._deleter is not None:
                self._deleter.check(part)
            self._latest = (archive.parts, archive.append(part, body))
        elif not archive.is_same(number, part, body):
            raise RemoteProtocolError("the manifest is listed again, and differs from the first time")
        elif number < self._taken_up:
            yield from answers(self._parts.get(number), self._spool)
        yield from self.more()

    def rejoin(self) -> None:
        """Expect the manifest from its beginning, or from any part on: control was opened anew."""
        self._expected = None

    @property
    def _waits(self) -> bool:
        """Whether parts wait to be taken up."""
        return self._taken_up < self._archive.parts

    @property
    def has_more(self) -> bool:
        """Whether `more` has something to do: parts wait, are done, or hold room that other transfers could use."""
        return self._waits or self._parts.has_done or self._large_files.is_to_be_trimmed

    def more(self) -> Iterator[m.Message]:
        """Archive parts that are done, and take up parts that wait, as long as there is room for them."""
        self._parts.archive_done()
        while self._waits and (admitted := self._admit_part()) is not None:
            yield from self._take_up(*admitted)
            self._parts.archive_done()
        self._latest = None
        self._large_files.trim()

    def _admit_part(self) -> tuple[m.ManifestPart, int] | None:
        """Return the next part and the memory that was borrowed for it; None where there is no room for it."""
        active = self._parts.active
        if len(active) >= PARTS_ACTIVE or self._committer.is_far_behind:
            return None
        latest = self._latest
        part = latest[1] if latest is not None and latest[0] == self._taken_up else self._archive.part(self._taken_up)
        if not self._grow(len(part.entries)):
            return None
        # One part is admitted without borrowing, so that the transfer goes on whatever other transfers hold.
        if all(part_state.borrowed_bytes for part_state in active):
            return part, 0
        size = memory_bytes(part.entries, self._offer.chunk_size)
        return (part, size) if self._account.try_borrow(size) else None

    def _grow(self, entries: int) -> bool:
        """Borrow the memory that so many more entries need to the end; return whether there is enough."""
        tables_bytes = 8 * self._archive.parts + self._entry_preparer.table_bytes(entries)
        if self._deleter is not None:
            tables_bytes += self._deleter.table_bytes(self._archive.entries)
        most = tables_bytes + tables_bytes // 8 + self._top_level_names.growth_bytes(entries)
        while self._owned_bytes < most:
            if not self._account.try_borrow(STEP_BYTES):
                return False
            self._owned_bytes += STEP_BYTES
        return True

    def _take_up(self, part: m.ManifestPart, borrowed_bytes: int) -> Iterator[m.Message]:
        """Prepare a part, let connections write into it, and answer it."""
        part_state = PartState(self._taken_up, part.first_file_id, part.entries)
        part_state.borrowed_bytes = borrowed_bytes
        finals = self._part_preparer.prepare(part_state)
        early = self._archive.states(part_state.number) if self._withdrawn_early else b""
        self._parts.add(part_state)
        self._taken_up += 1
        for index, state in enumerate(early):
            if state == WITHDRAWN:
                self._withdrawn_early -= 1
                self._withdraw(part_state, index)
        yield from answers(part_state, self._spool)
        self._part_preparer.rehash(part_state, finals)

    # --- re-hashed files

    def take_rehashed(self, batch: Rehashed | FinalsRehashed) -> Iterator[m.Message]:
        """Answer claimed segments and files, now that it is known what is on the disk."""
        self._counters.rehashed_bytes += batch.bytes
        if isinstance(batch, FinalsRehashed):
            yield from self._take_rehashed_finals(batch.digests)
            return
        part_state, index = self._parts.find(batch.file_id)
        with part_state.lock:
            open_file = part_state.large[index].open_file
            if open_file is None:
                return
            open_file.rehashing -= 1
            answer = open_file.rehashed(batch.share, batch.start, batch.digests)
        self._large_files.close_if_done(part_state, index, waits=False)
        yield from needed_messages(batch.file_id, batch.share, answer.needed)
        yield from held_messages(part_state, index, answer.held, self._spool, final=False)

    def _take_rehashed_finals(self, digests: list[tuple[int, bytes | None]]) -> Iterator[m.Message]:
        """Answer files of one part that were re-hashed under their final names.

        The digest is None of a file that is gone or was changed.
        """
        part_state, _ = self._parts.find(digests[0][0])
        gone = FileRanges()
        small: list[tuple[int, bytes]] = []
        large: list[int] = []
        with part_state.lock:
            for file_id, digest in digests:
                index = file_id - part_state.first
                if part_state.state(index) != CLAIMED:
                    continue
                if digest is None:
                    part_state.set(index, FREE)
                    gone.add(file_id, file_id + 1)
                elif index in part_state.large:
                    part_state.large[index].spooled = Spooled.DIGESTS
                    part_state.set(index, HELD)
                    large.append(index)
                else:
                    part_state.set_with_digest(index, HELD, digest)
                    small.append((file_id, digest))
        if files := gone.all():
            yield m.Needed(files, ())
        yield from held_files(small)
        for index in large:
            yield from held_messages(part_state, index, part_state.large[index].pieces(), self._spool, final=True)

    # --- zeros

    def take_zeros(self, message: m.Zeros) -> Iterator[m.Message]:
        """Make segments of large files zeros; repeat the message when they are."""
        for file_id, first, count in message.segments:
            self._counters.zero_bytes += self._make_zeros(file_id, first, first + count)
        yield message

    def _make_zeros(self, file_id: int, first: int, end: int) -> int:
        """Make the segments [first, end) of a file zeros; return how many bytes were not before."""
        while True:
            part_state = self._parts.acquire(self._parts.number_with(file_id))
            index = file_id - part_state.first
            try:
                large, state = part_state.large.get(index), part_state.state(index)
                if large is None or end > large.grid.segments or state == UNCHECKED:
                    raise RemoteProtocolError(f"segments {first} to {end - 1} of file {file_id} were told as zeros")
                if state in (VERIFIED, WITHDRAWN):  # repeated: it is complete by now
                    return 0
                open_file = large.open_file
                if state == DECLINED and open_file is None:
                    return large.take_declined_zeros(first, end, self._spool)
                if part_state.is_active and open_file is not None:
                    open_file.rehashing += 1  # so that it stays open
                    part_state.set(index, DECLINED if state == DECLINED else WRITING)
                    break
                is_active = part_state.is_active
            finally:
                part_state.lock.release()
            if is_active:
                self._large_files.open(part_state, index, None)
            else:
                self._parts.activate_again(part_state, None)
        try:
            sink = self._large_files.sink(part_state, index, open_file)
            return open_file.make_zeros(first, end, sink.make_zeros)
        finally:
            with part_state.lock:
                open_file.rehashing -= 1
            self._large_files.close_if_done(part_state, index, waits=False)

    # --- withdrawn files

    def withdraw(self, file_ids: Sequence[int]) -> None:
        """Drop files that the sender will not send. Their staging goes; a file under its final name stays."""
        for file_id in file_ids:
            if self._parts.entries <= file_id < self._archive.entries:  # its part waits
                is_new = self._archive.withdraw(file_id)
                self._withdrawn_early += is_new
            else:
                is_new = self._withdraw(*self._parts.find(file_id))
            if is_new and self._deleter is not None:
                part = self._archive.part(self._archive.number_with(file_id))
                self._deleter.withdrew(part.entries[file_id - part.first_file_id].path)

    def _withdraw(self, part_state: PartState, index: int) -> bool:
        """Drop a file; return whether it was there until now."""
        file_id = part_state.first + index
        with part_state.lock:
            state = part_state.state(index)
            entry = part_state.entries[index]
            is_further_name = self._entry_preparer.is_further_name(entry, file_id)
            if entry.type is not m.EntryType.FILE or (state == NOTHING and not is_further_name):
                raise RemoteProtocolError(f"file {file_id} was withdrawn, but has no bytes to send")
            if state == WITHDRAWN:
                return False
            part_state.set(index, WITHDRAWN)
            self._declines.withdrew(file_id)
            if not is_further_name:
                self._counters.size_bytes -= part_state.own_bytes(index)
            if index in part_state.large:
                self._counters.zero_bytes -= part_state.large[index].zero_bytes(self._spool)
                self._large_files.discard_set_aside(part_state, index)
            if not part_state.is_active:  # a copy from the archive: write the change back
                self._archive.save(part_state)
        self._top_level_names.release(entry.path)
        if index in part_state.large:
            self._large_files.close_if_done(part_state, index, waits=False)
        return True

    # --- the end

    def missing(self) -> Iterator[m.Message]:
        """Yield Needed for all missing files; parts that wait are taken up and answered first."""
        answered = self._taken_up
        yield from self.more()
        while self._waits and not (self._parts.active or self._is_over):
            time.sleep(WAIT_SECONDS)  # for memory, or for the committer
            yield from self.more()
        for part_state in self._parts.active:
            yield from missing(part_state, self._spool, is_answered=part_state.number >= answered)

    def finish(self, finish: m.Finish) -> bytes:
        """Refuse further writes, and compare the root digest with the sender's; return it.

        Raises TransferFailed(DIGEST).
        """
        self.chunks.stop_writes()
        self._shard.take_finish(finish)
        if self._deleter is not None:
            self._deleter.take_finish(finish)
        self._archive_all()
        self._counters.held_bytes += sum(map(self._held_bytes, range(self._archive.parts)))
        root = root_digest(self._archive.digests())
        if root != finish.root_digest or finish.chunks != self._part_preparer.chunks:
            raise TransferFailed(
                Code.DIGEST, "what was received differs from what the sender read, though every chunk was equal"
            )
        return root

    def _archive_all(self) -> None:
        """Archive every part. Files that are HELD in staging are complete now, as the sender sends nothing more."""
        for number in range(self._archive.parts):
            part_state = self._parts.get_active(number)
            if part_state is None and self._archive.has_partial(number):
                part_state = self._parts.get(number)
                self._parts.activate(part_state)
            if part_state is not None:
                self._complete_held(part_state)
                self._parts.archive_done()
        for number in filter(self._archive.has_declined, range(self._archive.parts)):
            self._count_declined(self._archive.restore(number))
        for part_state in self._parts.active:  # a connection is still receiving a file that was withdrawn
            with part_state.lock:
                self._archive.save(part_state)

    def _count_declined(self, part_state: PartState) -> None:
        """Count large files that were declined, but came in whole: the sender has not withdrawn them."""
        for index, large in part_state.large.items():
            if part_state.state(index) == DECLINED and large.has_all_digests(self._spool):
                large.spooled = Spooled.DIGESTS
                part_state.set(index, VERIFIED)
                self._archive.save(part_state)

    def _complete_held(self, part_state: PartState) -> None:
        for index, large in list(part_state.large.items()):
            if part_state.state(index) not in (WITHDRAWN, DECLINED) and part_state.is_partial(index):
                if large.open_file is None:
                    self._large_files.open(part_state, index, None)
                # The sender has given up the chunks that are still being received: otherwise it would not say Finish.
                for connection in list(large.open_file.inside) if large.open_file is not None else ():
                    connection.stop(LEAVE_SECONDS)
                self._large_files.close_if_done(part_state, index, is_finishing=True)

    def _held_bytes(self, number: int) -> int:
        """Count the bytes of an archived part that were here before."""
        if HELD not in self._archive.states(number):
            return 0
        part_state = self._archive.restore(number)
        return sum(part_state.entries[index].size for index, state in enumerate(part_state.states()) if state == HELD)

    def next_step(self) -> NextStep:
        """Commit, once."""
        if not self._is_committed:
            return self._commit
        counters = self._counters
        counters.left_files = self._declines.report.left
        return self._shard.complete or m.Complete(
            True, counters.deleted_files, counters.undeletable_files, counters.left_files
        )

    def _commit(self) -> None:
        """Put the last files in place, make hard links, set modes and times of directories; make all of it durable."""
        begun = time.monotonic()
        self._stagings.places.check_paths()
        self._committer.flush()
        parts = range(self._archive.parts)
        self._entry_preparer.look_again()
        for number in parts:
            self._entry_preparer.correct_held(number)
            self._entry_preparer.hard_links.link(number)
        self._committer.flush()  # copies of files, where the destination has no hard links
        self._stagings.close_below()
        if self._deleter is not None:  # before the times of directories are set, which this changes
            self._deleter.delete(map(self._archive.part, parts))
        # While another shard writes, directories stay open for their owner: the last one to end closes them.
        with self._top_level_names.closing() as is_last:
            self._entry_preparer.look_again()
            if is_last:
                self._shard.look_for_pending()
            for number in reversed(parts):
                self._entry_preparer.finish_directories(number, keeps_open=not is_last)
            try:
                self._entry_preparer.sync()
                self._stagings.places.sync()
                self._stagings.places.check_paths()
                self._stagings.close()
            except OSError as error:
                raise from_os_error(error, Code.DESTINATION, f"can't sync {self._destination.path}") from None
            # Here, so that the last one finds all others finished: it is the one that has looked at what they wait for.
            report = self._declines.report
            self._counters.left_files = report.left
            self._shard.finish(self._counters, self._part_preparer.first_files, report)
        self._tell_empty()
        self._counters.sync_seconds = time.monotonic() - begun
        self._is_committed = True

    def _tell_empty(self) -> None:
        """Warn the user here if nothing came, or nothing but top-level directories; the sender warns its own."""
        counters, complete = self._counters, self._shard.complete
        if complete is not None and (complete.job_files or not complete.committed):
            return  # other shards have moved something, or may still do so
        if counters.files or counters.skipped_kinds:
            return
        parts = map(self._archive.part, range(self._archive.parts))
        is_bare = all(
            entry.type is m.EntryType.DIRECTORY and b"/" not in entry.path for part in parts for entry in part.entries
        )
        if is_bare and counters.warn(NOTHING_CAME):
            self._log.warning("notice", reason=NOTHING_CAME)

    def stop_writes(self) -> None:
        """Refuse further writes, and wake every thread that waits: the transfer is over."""
        self._is_over = True
        self._part_preparer.stop()
        self.chunks.stop_writes()
        self._large_files.stop_waiting()
        self._committer.stop_waiting()

    def close(self, *, cleanly: bool) -> None:
        """Put in place what is complete, and keep the staging of large files for the next run.

        Without `cleanly` a thread hangs in a file: then no descriptor is closed, as the thread would write into
        whatever has its number next.
        """
        with contextlib.ExitStack() as steps:  # runs the steps in reverse order, each even if another one raises
            if cleanly:
                steps.callback(self._stagings.close)
                steps.callback(self._index.close)
                steps.callback(self._spool.close)
                steps.callback(self._large_files.close)
            else:
                steps.callback(self._large_files.open_files.close)
            steps.callback(self._committer.stop)
            steps.callback(self._entry_preparer.close)
