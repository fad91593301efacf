"""The target of a dry run: it answers each entry of a manifest with how it stands here, and writes nothing."""

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from filestreamer.telemetry.counters import TransferCounters
from filestreamer.wire import limits
from filestreamer.wire import messages as m
from filestreamer.wire.digests import root_digest
from filestreamer.wire.errors import Code, RemoteProtocolError, TransferFailed
from filestreamer.wire.grid import Grid
from receiver.check.judge import Judge, Judgement
from receiver.check.verdicts import VerdictMessages
from receiver.disk.destination import Destination, shown_path
from receiver.disk.existing import policy
from receiver.disk.paths import check_path
from receiver.disk.report import Report
from receiver.disk.staging.readable import FinalFiles
from receiver.file.left_target import NoChunks
from receiver.file.rehash import FinalsRehashed, Rehashed
from receiver.file.target import NextStep
from receiver.memory.budget import Account
from receiver.tree.mirror.extras import Extras, check_permitted, is_short
from receiver.tree.mirror.mirror import ListedDirectory, Mirror

OWN_BYTES: Final = 2 * limits.MIB
"""Memory for names that is reserved with each transfer: a dry run has no data connections."""
STEP_BYTES: Final = 256 * limits.KIB
"""More of it is borrowed in steps of this size."""
_SHORT: Final = (m.Standing.EXISTING, m.Standing.DECLINED)


class CheckTarget:
    """Answers one dry run. The coordinator calls it, in one thread at a time."""

    has_more = False
    """Every part is answered when it comes."""

    def __init__(
        self,
        offer: m.Offer,
        destination: Destination,
        output_name: bytes | None,
        *,
        is_in_use: Callable[[bytes], bool],
        account: Account,
        counters: TransferCounters,
        report: Report,
        log: Any,
    ) -> None:
        """`output_name` replaces the name of the one file; `is_in_use` says whether a transfer has a name.

        Raises TransferFailed: POLICY, PATH.
        """
        counters.verdicts = {}
        counters.files = 0
        self.name = b""
        self.chunks = NoChunks("in a dry run, in which none is")
        self._offer = offer
        self._destination = destination
        self._account = account
        self._owned_bytes = OWN_BYTES
        self._counters = counters
        self._report = report
        self._log = log
        self._judge = Judge(
            destination, policy(offer, replace=destination.replace), checksum=offer.checksum, name=output_name
        )
        self._finals = FinalFiles(destination)
        self._messages = VerdictMessages()
        self._block = memoryview(bytearray(limits.BLOCK_BYTES))
        self._entries = 0
        self._alone: tuple[m.Entry, Judgement] | None = None
        """The only entry so far, if it is one file, and how it stands: a transfer of it would end if it is refused."""
        self._is_short = False
        """Whether an entry was declined."""
        self._mirror: Mirror | None = None
        if offer.delete is not None:
            check_permitted(destination)
            self._mirror = Mirror(offer.delete)
            self._extras = Extras(
                offer.delete,
                destination,
                remove=self._tell_extra,
                warn=report.warn,
                try_claim=lambda name: not is_in_use(name),
                release=lambda _: None,
                is_dry=True,
            )

    # --- parts of the manifest

    def take_part(self, part: m.ManifestPart, body: bytes) -> Iterator[m.Message]:
        """Answer every entry of the next part."""
        del body
        if part.first_file_id != self._entries:
            raise RemoteProtocolError(f"a part begins with file {part.first_file_id}, not with {self._entries}")
        if not self._entries:
            self._begin(part)
        if self._mirror is not None:
            self._borrow(self._mirror.table_bytes(len(part.entries)))
        for file_id, entry in enumerate(part.entries, part.first_file_id):
            yield from self._answer(file_id, entry)
        self._entries += len(part.entries)
        if self._entries != 1 or not part.last:
            self._alone = None
        if self._mirror is not None and part.last:
            yield from self._tell_extras(self._mirror.end())
        yield from self._messages.take()

    def _borrow(self, most_bytes: int) -> None:
        """Have so much memory for the names of directories that have not come whole. Raises TransferFailed(LIMIT)."""
        while self._owned_bytes < most_bytes:
            if not self._account.try_borrow(STEP_BYTES):
                raise TransferFailed(Code.LIMIT, "this receiver has no memory left for a dry run with --delete")
            self._owned_bytes += STEP_BYTES

    def _begin(self, part: m.ManifestPart) -> None:
        self.name = part.entries[0].path.partition(b"/")[0] if part.entries else b""
        self._counters.name = shown_path(self._destination, self.name)
        self._counters.phase = "moving"
        self._log.info("transfer_started", tree=self._counters.name, dry_run=True)

    def _answer(self, file_id: int, entry: m.Entry) -> Iterator[m.Message]:
        check_path(entry.path)
        if entry.type is m.EntryType.KEPT:
            judgement, is_further_name = Judgement(m.Standing.SAME), False
        else:
            is_further_name = self._judge.is_further_name(entry)
            judgement = self._judge.judge(entry)
        if self._mirror is not None:
            is_there = judgement.standing not in (m.Standing.NEW, m.Standing.DECLINED)
            yield from self._tell_extras(self._mirror.take(entry, is_there=is_there))
        if judgement.is_comparable:
            yield from self._messages.take()
            try:
                yield from self._held(file_id, entry)
            except TransferFailed as error:
                judgement = judgement._replace(reason=error.reason)
        self._count(entry, judgement, is_further_name=is_further_name)
        self._messages.add(m.EntryVerdict(judgement.standing, file_id, reason=judgement.reason))
        yield from self._messages.take_full()

    def _held(self, file_id: int, entry: m.Entry) -> Iterator[m.Held]:
        """Yield the digests of a file that is there. Raises TransferFailed where it can't be read."""
        grid = Grid(entry.size, self._offer.chunk_size)
        if grid.segments > limits.CHUNKS_PER_FILE:
            raise RemoteProtocolError(f"{grid.segments} chunks are too many: the limit is {limits.CHUNKS_PER_FILE}")
        file = self._finals.open(self._judge.path_of(entry))
        try:
            for first in range(0, grid.segments, limits.DIGESTS_PER_HELD):
                end = min(first + limits.DIGESTS_PER_HELD, grid.segments)
                digests = [file.digest(self._block, grid, index, self._count_hashed) for index in range(first, end)]
                yield m.Held(file_id, first, b"".join(digests), (), True)
        finally:
            os.close(file.fd)

    def _count_hashed(self, count: int) -> None:
        self._counters.rehashed_bytes += count

    def _count(self, entry: m.Entry, judgement: Judgement, *, is_further_name: bool) -> None:
        if entry.type is m.EntryType.KEPT:
            return
        counters, standing = self._counters, judgement.standing
        counters.count_verdict(standing)
        self._is_short = self._is_short or standing in _SHORT
        self._alone = (entry, judgement) if b"/" not in entry.path else None
        if entry.type in (m.EntryType.FILE, m.EntryType.STREAM):
            counters.files += 1
            counters.size_bytes += 0 if is_further_name else entry.size

    def _tell_extras(self, directories: list[ListedDirectory]) -> Iterator[m.Message]:
        """Tell what would be removed from these directories: more names than there is memory for, maybe."""
        for directory in directories:
            for _ in self._extras.look(directory):
                yield from self._messages.take_full()

    def _tell_extra(self, directory_fd: int, name: bytes, path: bytes, is_directory: bool) -> None:
        del directory_fd, name, is_directory
        self._counters.count_verdict(m.Standing.EXTRA)
        self._messages.add(m.EntryVerdict(m.Standing.EXTRA, path=path))

    # --- what a dry run does not have

    def rejoin(self) -> None:
        """Refuse: a dry run is begun again instead."""
        raise TransferFailed(Code.UNKNOWN_TRANSFER, "a dry run can't be continued: begin it again")

    def take_rehashed(self, batch: Rehashed | FinalsRehashed) -> Sequence[m.Message]:
        """Do nothing: files are hashed when their part comes."""
        del batch
        return ()

    def take_zeros(self, message: m.Zeros) -> Sequence[m.Message]:
        """Refuse: nothing is sent in a dry run."""
        raise RemoteProtocolError(f"file {message.segments[0].file_id} was told to have zeros in a dry run")

    def more(self) -> Sequence[m.Message]:
        """Do nothing: every part is answered when it comes."""
        return ()

    def withdraw(self, file_ids: Sequence[int]) -> None:
        """Refuse: nothing is sent that could be withdrawn."""
        raise RemoteProtocolError(f"file {file_ids[0]} was withdrawn in a dry run, in which none is sent")

    # --- the end

    def missing(self) -> Sequence[m.Message]:
        """Return nothing: nothing is to be sent."""
        return ()

    def finish(self, finish: m.Finish) -> bytes:
        """End as a transfer would that is refused. Raises TransferFailed: NO_SPACE, EXISTS, DESTINATION, DIGEST."""
        if finish.chunks or finish.root_digest != root_digest([]):
            raise TransferFailed(Code.DIGEST, "a dry run was finished as if something had been sent")
        if self._mirror is not None and (self._is_short or is_short(finish)):
            self._report.warn("nothing would be removed (--delete), as not everything could be moved")
        if self._alone is not None and self._alone[0].type is m.EntryType.FILE and self._alone[1].standing in _SHORT:
            entry, judgement = self._alone
            code = Code.EXISTS if judgement.standing is m.Standing.EXISTING else Code.DESTINATION
            shown = shown_path(self._destination, self._judge.path_of(entry))
            raise TransferFailed(code, f"can't write {shown}: {judgement.reason}")
        self._judge.room.check(self._counters.name)
        return root_digest([])

    def next_step(self) -> NextStep:
        """Return Complete: nothing was committed."""
        return m.Complete(False)

    def stop_writes(self) -> None:
        """Do nothing: nothing is written."""

    def close(self, *, cleanly: bool) -> None:
        """Release the directories that were looked at last, unless a thread may still use them."""
        if cleanly:
            self._judge.close()
            self._finals.close()
