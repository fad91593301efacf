"""Prepares a part of the manifest when it is taken up: each entry, and the re-hashing of what may be here already.

1. Each path is checked, then each entry is prepared (`entry_preparer`).
2. A large file of which an earlier run staged a part is opened, and its claimed segments are re-hashed.
3. The space that the part needs is compared with what is free.
4. With --checksum, files of equal size and mtime are re-hashed where they are.
"""

import os
from collections import Counter
from collections.abc import Iterator
from typing import Final

from filestreamer.telemetry.counters import TransferCounters
from filestreamer.wire import limits
from filestreamer.wire import messages as m
from filestreamer.wire.errors import Code, RemoteProtocolError, TransferFailed, from_os_error
from filestreamer.wire.grid import WHOLE, Grid
from filestreamer.wire.layout import Layout
from filestreamer.wire.runs import runs
from filestreamer.wire.tree_shares import TreeShares
from receiver.disk.destination import Destination, shown_path
from receiver.disk.filesystem.kind import stores_every_byte
from receiver.disk.paths import check_paths, staging_key
from receiver.disk.place import Place
from receiver.disk.space import data_bytes
from receiver.disk.staging.shared_names import SharedNames, path_key
from receiver.disk.staging.sweep import (
    discard_staged,
    discard_version,
    drop_leftovers,
    has_staged_bytes,
    staged_keys,
)
from receiver.file.rehash import FinalFile, Rehasher, Work, count_batches
from receiver.file.states import CLAIMED, DECLINED, FREE, LEFT, NOTHING, UNCHECKED
from receiver.memory.budget import Account
from receiver.tree.commit.places import Places
from receiver.tree.entries.entry_preparer import EntryPreparer
from receiver.tree.large_files import LargeFiles
from receiver.tree.manifest.archive import Archive
from receiver.tree.manifest.part_state import PartState
from receiver.tree.part_table import PartTable
from receiver.tree.top_level_names import Names

KEYS_BYTES: Final = 64 * limits.KIB
"""Memory for keys in staging that is reserved with each transfer."""
STEMS: Final = 64
"""Files that several shards wrote, of which the versions are known without borrowing."""
STEM_BYTES: Final = 512
"""What a further one takes."""
RESUMED_FILES: Final = 64
"""Large files of an earlier run that are open at once to be re-hashed; any further one is received anew."""


class PartPreparer:
    """Prepares the parts of one tree. For one thread; `stop` is for any."""

    def __init__(
        self,
        offer: m.Offer,
        destination: Destination,
        places: Places,
        entry_preparer: EntryPreparer,
        *,
        archive: Archive,
        parts: PartTable,
        account: Account,
        large_files: LargeFiles,
        rehasher: Rehasher,
        counters: TransferCounters,
        shares: TreeShares | None = None,
    ) -> None:
        """`shares`: those of a shard of a tree."""
        self._shares = shares
        self.chunks = 0
        """Chunks of all parts that were prepared, by their numbers: those of other shards included."""
        self.first_files = 0
        """Files of which this transfer has the first segment: all but shares of files that another shard begins."""
        self._chunk_size = offer.chunk_size
        self._destination = destination
        self._places = places
        self._entry_preparer = entry_preparer
        self._archive = archive
        self._parts = parts
        self._account = account
        self._large_files = large_files
        self._rehasher = rehasher
        self._counters = counters
        self._data_bytes: Counter[Place] = Counter()
        """Bytes that were to be sent of all parts that were prepared, by the place that they go to; so are the next."""
        self._freed_bytes: Counter[Place] = Counter()
        """Bytes of what the files of these parts replace."""
        self._freed_last: dict[Place, int] = {}
        """The least that one of these files frees by what it replaces."""
        self._staged_keys: dict[Place, Names] = {}
        """Keys of the ledgers that earlier runs left, by place; read when the first large file is looked for there."""
        self._stems: dict[Place, dict[str, set[str]]] = {}
        """Names of files that several shards wrote (`shared_names`), by the key of their path, by place."""
        self._is_stopped = False

    def stop(self) -> None:
        """Stop preparing: the transfer is over, and another one may already have the names."""
        self._is_stopped = True

    def prepare(self, part_state: PartState) -> list[int]:
        """Prepare a part, whose lock this takes; return the indices of the files to be re-hashed where they are.

        Raises RemoteProtocolError, TransferFailed.
        """
        check_paths([entry.path for entry in part_state.entries])
        if self._shares is not None and not all(map(self._shares.has, part_state.entries)):
            raise RemoteProtocolError("a shard lists an entry that another shard moves")
        with part_state.lock:
            finals = self._prepare_entries(part_state)
            self._check_space(part_state)
        return finals

    def _prepare_entries(self, part_state: PartState) -> list[int]:
        preparer, entries = self._entry_preparer, part_state.entries
        preparer.look_again()
        finals = []
        sizes = []
        deferred = []
        following = 0
        while following < len(entries):
            if self._is_stopped:  # while the disk was slow
                raise TransferFailed(Code.TIMEOUT, "the transfer ended while the manifest was compared with the disk")
            index, following = following, following + 1
            entry, file_id = entries[index], part_state.first + index
            state = preparer.prepare(entry, file_id)
            if preparer.was_found:
                part_state.note_found(index)
            if preparer.is_deferred(entry, file_id):
                deferred.append((index, entry))
            if entry.type is not m.EntryType.FILE:
                continue
            if preparer.has_segments(entry, file_id):
                sizes.append(entry.size)
            state = self._take_file(part_state, index, state)
            if state == CLAIMED:
                finals.append(index)
            if state in (FREE, UNCHECKED) and (count := preparer.count_alike(entries, index, state, self._chunk_size)):
                following += count
                sizes += self._take_alike(part_state, range(index + 1, following), state)
        chunks = Layout(self._chunk_size, sizes).chunks
        self.chunks += chunks
        others = sum(
            large.grid.segments - large.share.chunks(large.grid.segments) for large in part_state.large.values()
        )
        self._counters.chunks += chunks - others
        if deferred:
            self._archive.save_deferred(part_state.number, deferred)
        return finals

    def _take_file(self, part_state: PartState, index: int, state: int) -> int:
        """Count a file and its bytes; look for staging of a large one. Return its state by then."""
        entry = part_state.entries[index]
        self._counters.files += 1
        self.first_files += self._shares is None or self._shares.share_of(entry).index == 0
        part_state.set(index, state)
        if state in (NOTHING, LEFT):  # no bytes of it are moved, or were before
            return state
        if state == DECLINED and self._entry_preparer.is_further_name(entry, part_state.first + index):
            return state  # it has no segments
        size = entry.size
        if size > self._chunk_size:
            self._take_large_file(part_state, index, state)
            state, size = part_state.state(index), part_state.own_bytes(index)
        self._counters.size_bytes += size
        if state == UNCHECKED:
            self._counters.unchecked_bytes += size
        return state

    def _take_alike(self, part_state: PartState, indices: range, state: int) -> list[int]:
        """Take small files that have the same state, FREE or UNCHECKED; return their sizes."""
        sizes = [entry.size for entry in part_state.entries[indices.start : indices.stop]]
        part_state.set_all(indices, state)
        self._counters.files += len(sizes)
        self.first_files += len(sizes)
        self._counters.size_bytes += sum(sizes)
        if state == UNCHECKED:
            self._counters.unchecked_bytes += sum(sizes)
        return sizes

    def _take_large_file(self, part_state: PartState, index: int, state: int) -> None:
        entry = part_state.entries[index]
        large = part_state.large[index] = self._archive.large_file(entry)
        if large.grid.segments > limits.CHUNKS_PER_FILE:
            reason = f"{large.grid.segments} chunks are too many: the limit is {limits.CHUNKS_PER_FILE}"
            raise RemoteProtocolError(reason)
        if state == FREE:
            self._large_files.open_files.check(large)
        elif state == DECLINED:
            self._large_files.begin_declined(part_state, index)
            return
        if large.share is not WHOLE:
            self._take_share(part_state, index, state)
            return
        place = self._places.of(entry.path)
        key = staging_key(place.below(entry.path))
        self._discard_shared(place, key)
        if os.fsencode(key) not in self._keys_in(place):
            return
        if state == CLAIMED and has_staged_bytes(place, place.below(entry.path)):
            state = FREE  # an earlier run began to send it, as it differs: what came is worth more
            part_state.set(index, FREE)
        if state == FREE:
            self._resume(part_state, index)
        else:  # a crash right after the rename has left the ledger of a file that is in place
            self._drop_leftovers(entry.path)

    def _take_share(self, part_state: PartState, index: int, state: int) -> None:
        """Look for staging of a large file that several shards move."""
        entry, large = part_state.entries[index], part_state.large[index]
        place = self._places.of(entry.path)
        names = SharedNames.of(place.below(entry.path), large.grid, entry.mtime_ns, large.share)
        keys = self._keys_in(place)
        if state == CLAIMED:  # its place keeps no times: all shards receive it anew, as none compares all of it
            state = FREE
            part_state.set(index, FREE)
        key = path_key(names.stem)
        self._discard_shared(place, key, names.stem if state == FREE else "")  # else the file is in place
        if os.fsencode(key) in keys:
            with place.staging_there() as staging_fd:
                if staging_fd is not None:
                    discard_staged(staging_fd, place.below(entry.path))  # of a transfer that was no shard
        if state != FREE:
            return
        is_staged = os.fsencode(names.key) in keys
        # Where the share is not sealed, no shard puts the file in place from now on; but one may have done so since
        # this one has looked for the file. To begin the file anew would be to wait for the other shards in vain.
        if (is_staged and self._large_files.take_sealed(part_state, index)) or self._entry_preparer.is_there(entry):
            part_state.set(index, UNCHECKED)
        elif is_staged:
            self._resume(part_state, index)

    def _discard_shared(self, place: Place, key: str, kept: str = "") -> None:
        """Discard what shards have staged of a file with this key, but for one version.

        The others are of an earlier version of the source, of another number of shards, or of no shards any more.
        """
        self._keys_in(place)
        needless = self._stems[place].get(key, set()) - {kept}
        if needless:
            with place.staging_there() as staging_fd:
                if staging_fd is not None:
                    for stem in needless:
                        discard_version(staging_fd, stem)

    def _keys_in(self, place: Place) -> Names:
        """Return the keys of the ledgers that earlier runs left in a place. Raises TransferFailed."""
        if place not in self._staged_keys:
            keys, stems = Names(), dict[str, set[str]]()
            try:
                self._note_keys(place, keys, stems)
            except OSError as error:
                if place is self._destination:  # in a place below it, such files are received anew
                    what = f"can't look at the staging of {place.path}"
                    raise from_os_error(error, Code.DESTINATION, what) from None
            self._staged_keys[place], self._stems[place] = keys, stems
        return self._staged_keys[place]

    def _note_keys(self, place: Place, keys: Names, stems: dict[str, set[str]]) -> None:
        """Note the keys in a place, as many as there is memory for: files of the others are received anew.

        Senders may have left any number of them. Shards go by all of them, or by none. Raises OSError,
        TransferFailed(LIMIT).
        """
        # A shard can't do without. Any other transfer can, and leaves most of the memory to what goes on.
        leave_bytes = 0 if self._shares is not None else 3 * self._account.budget.total_bytes // 4
        for key in staged_keys(place):
            is_shared = "-" in key
            needed_bytes = keys.growth_bytes(1) if keys.table_bytes(1) > KEYS_BYTES else 0
            needed_bytes += STEM_BYTES if is_shared and len(stems) >= STEMS else 0
            if needed_bytes and not self._account.try_borrow(needed_bytes, leave_bytes=leave_bytes):
                if self._shares is None:
                    return
                raise TransferFailed(Code.LIMIT, "this receiver has no memory left to find what is staged; retrying")
            keys.add(os.fsencode(key))
            if is_shared:
                stems.setdefault(path_key(key), set()).add(key.rpartition("-")[0])

    def _drop_leftovers(self, path: bytes) -> None:
        try:
            place = self._places.of(path)
            below = place.below(path)
            drop_leftovers(place, below, os.stat(below, dir_fd=place.fd, follow_symlinks=False))
        except FileNotFoundError:
            pass  # somebody has just removed the file: the next run finds what is staged
        except OSError as error:
            what = f"can't remove what is staged of {shown_path(self._destination, path)}"
            raise from_os_error(error, Code.DESTINATION, what) from None

    def _resume(self, part_state: PartState, index: int) -> None:
        """Open a large file of which an earlier run left something, if there is room; re-hash what is claimed."""
        if len(self._large_files.open_files) >= RESUMED_FILES:
            return
        open_file = self._large_files.try_open(part_state, index)
        if open_file is None:
            return
        states = open_file.states()  # read once: the batches that are counted are those that are re-hashed

        def works() -> Iterator[Work]:
            for start, stop in runs(states, CLAIMED):
                yield Work(
                    part_state.first + index, open_file.file.content, open_file.file.grid, open_file.share, start, stop
                )

        count = sum(count_batches(work.grid, work.start, work.stop) for work in works())
        if count:
            open_file.rehashing += count
            self._rehasher.add_all(works())

    def _check_space(self, part_state: PartState) -> None:
        """Check whether the files of a part can fit on the disk, beside what is still to come of earlier parts.

        What a file replaces is free when the file is complete: the last one has the space of all that the others
        replace, those of earlier parts included. Raises TransferFailed(NO_SPACE), only where they can't fit in any
        order.
        """
        freed_bytes = self._entry_preparer.freed_bytes
        files = [
            (
                self._places.of(entry.path),
                min(data_bytes(entry), part_state.own_bytes(index)),
                freed_bytes.get(part_state.first + index, 0),
            )
            for index, (entry, state) in enumerate(zip(part_state.entries, part_state.states(), strict=True))
            if state == FREE
        ]
        freed_bytes.clear()
        for place in {place for place, _, _ in files}:
            sent_bytes = sum([data for there, data, _ in files if there is place])
            freed = [replaced for there, _, replaced in files if there is place]
            # Each file that is replaced is freed when its successor is there: all but the one that is freed last.
            last = self._freed_last[place] = min([*freed, self._freed_last.get(place, freed[0])])
            needed_bytes = sent_bytes - sum(freed) + last
            # All that was received so far may have gone to this place, and may not be in place yet.
            to_come = max(0, self._data_bytes[place] - self._counters.moved_bytes) - self._freed_bytes[place]
            self._data_bytes[place] += sent_bytes
            self._freed_bytes[place] += sum(freed)
            free = place.free_bytes() - to_come
            if needed_bytes > free and stores_every_byte(place.fd):
                where = self._counters.name if place is self._destination else place.path
                reason = f"{needed_bytes} bytes are needed next and {max(0, free)} are free"
                raise TransferFailed(Code.NO_SPACE, f"no space for {where}: {reason}")

    # --- files that are re-hashed where they are

    def rehash(self, part_state: PartState, finals: list[int]) -> None:
        """Re-hash the files of a part that are under their final names, soon; the part is in the table by now."""
        if finals:
            files = [
                FinalFile(part_state.first + index, entry.path, Grid(entry.size, self._chunk_size))
                for index in finals
                for entry in [part_state.entries[index]]
            ]
            self._rehasher.add_finals(self._destination, files, self._write_digests)

    def _write_digests(self, file_id: int, first: int, digests: bytes) -> None:
        """Write digests of a large file into the spool, from segment `first` on."""
        part_state, index = self._parts.find(file_id)
        with part_state.lock:
            part_state.large[index].write_digests(first, digests, self._archive.spool)
