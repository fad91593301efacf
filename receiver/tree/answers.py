"""The answers for the files of a part of a tree, Needed, Held and Zeros, by the states at the moment of the answer."""

from collections.abc import Iterable, Iterator

from filestreamer.wire import limits
from filestreamer.wire import messages as m
from filestreamer.wire.runs import equal_runs, runs, runs_without
from receiver.file.answers import needed_messages, zeros_messages
from receiver.file.states import (
    CLAIMED,
    FREE,
    HELD,
    LEFT,
    NOTHING,
    UNCHECKED,
    VERIFIED,
    WRITING,
    ZERO,
)
from receiver.tree.manifest.part_state import PartState
from receiver.tree.manifest.spool import Spool


def answers(part_state: PartState, spool: Spool) -> Iterator[m.Message]:
    """Yield the answers for all files of a part; a CLAIMED file is answered after it was re-hashed."""
    needed = FileRanges()
    stays = {UNCHECKED: FileRanges(), LEFT: FileRanges()}
    held: list[tuple[int, bytes]] = []
    base = part_state.first
    with part_state.lock:
        large = _begun_large_files(part_state)
        for state, first, end in equal_runs(part_state.states()):
            if state in stays:
                stays[state].add(base + first, base + end)
            elif state == FREE or (state == NOTHING and needed.end == base + first):
                # A range may include entries without segments, which the sender skips: that makes fewer ranges.
                needed.add(base + first, base + end)
            elif state in (WRITING, VERIFIED, HELD):
                for index in [index for index in range(first, end) if index not in large]:
                    if state == WRITING:
                        needed.add(base + index, base + index + 1)
                    else:
                        held.append((base + index, part_state.digest(index)))
    if files := needed.all():
        yield m.Needed(files, ())
    unchecked, left = (files.all() for files in stays.values())
    if unchecked or left:
        yield m.Held((unchecked or left)[0].first_file_id, 0, b"", unchecked, False, left)
    yield from held_files(held)
    for index in large:
        yield from _large_file_answers(part_state, index, spool)


def held_files(digests: list[tuple[int, bytes]]) -> Iterator[m.Held]:
    """Yield Held for small files of one part, in order: the digest of each, by file ID."""
    ranges = FileRanges()
    for file_id, _ in digests:
        ranges.add(file_id, file_id + 1)
    if files := ranges.all():
        yield m.Held(0, 0, b"".join([digest for _, digest in digests]), files=files)


def _begun_large_files(part_state: PartState) -> dict[int, None]:
    """Return the large files of which segments are here, in order: each is answered by its segments."""
    return {
        index: None
        for index in part_state.large
        for state in [part_state.state(index)]
        if state in (VERIFIED, HELD) or (state == WRITING and part_state.is_partial(index))
    }


def missing(part_state: PartState, spool: Spool, *, is_answered: bool) -> Iterator[m.Needed]:
    """Yield Needed, at Finish, for all missing files of a part, and for CLAIMED ones, which are not re-hashed yet.

    With `is_answered`, all other files were answered a moment ago.
    """
    wanted = (CLAIMED,) if is_answered else (CLAIMED, FREE, WRITING)
    with part_state.lock:
        claimed = [index for index, state in enumerate(part_state.states()) if state == CLAIMED]
        partial = [
            index
            for index in part_state.large
            if part_state.is_partial(index) and part_state.state(index) in (WRITING, HELD)
        ]
    for index in claimed:
        yield m.Needed((m.FileRange(part_state.first + index, 1),), ())
    for index in partial:
        share = part_state.large[index].share
        for start, states in _states(part_state, index, spool):
            yield from needed_messages(part_state.first + index, share, _runs(start, states, *wanted))
    if not is_answered:
        yield from (each for each in answers(part_state, spool) if isinstance(each, m.Needed) and each.files)


def held_messages(
    part_state: PartState, index: int, runs: Iterable[tuple[int, int]], spool: Spool, *, final: bool
) -> Iterator[m.Held]:
    """Yield Held with the digests of ordinals [start, stop) of its share of a file, in messages within the limit."""
    large = part_state.large[index]
    count = large.share.count
    step = max(1, limits.DIGESTS_PER_HELD // count)  # the digests of others between them are read, too
    for start, stop in runs:
        for at in range(start, stop, step):
            first, end = large.share.span(at, min(at + step, stop))
            with part_state.lock:
                digests = large.digests_between(first, end, spool)
            if count > 1:
                size = limits.DIGEST_BYTES
                digests = b"".join(digests[i : i + size] for i in range(0, len(digests), size * count))
            yield m.Held(part_state.first + index, first, digests, (), final)


def _large_file_answers(part_state: PartState, index: int, spool: Spool) -> Iterator[m.Message]:
    with part_state.lock:
        is_partial = part_state.is_partial(index)
        is_final = part_state.state(index) == HELD and not is_partial
    file_id, share = part_state.first + index, part_state.large[index].share
    for start, states in _states(part_state, index, spool):
        held = _runs(start, states, HELD, VERIFIED)
        if is_partial:
            yield from needed_messages(file_id, share, _runs(start, states, FREE, WRITING))
        else:  # complete: for a file under its final name, no states were kept
            held = ((start + first, start + end) for first, end in runs_without(states, ZERO))
        yield from held_messages(part_state, index, held, spool, final=is_final)
        yield from zeros_messages(file_id, share, _runs(start, states, ZERO))


def _states(part_state: PartState, index: int, spool: Spool) -> Iterator[tuple[int, bytes]]:
    """Yield the states of the segments of a large file that are in its share, piece by piece: first ordinal, states.

    The lock is released between pieces, as connections need it while messages are sent. No list of all runs is made:
    there can be as many runs as segments, which would take far more memory than the table of the file.
    """
    large = part_state.large[index]
    for first, end in large.pieces():
        with part_state.lock:
            states = large.states_between(first, end, spool)
        start = large.share.chunks(first)
        yield start, states[large.share.chunk(start) - first :: large.share.count]


def _runs(start: int, states: bytes, *wanted: int) -> Iterator[tuple[int, int]]:
    """Yield the runs [start, stop) of ordinals in any of the wanted states, given the states from one of them on."""
    return ((start + first, start + end) for first, end in runs(states, *wanted))


class FileRanges:
    """Files that are added in order, as ranges."""

    def __init__(self) -> None:
        self.end = -1
        """One more than the last file; -1 where there is none."""
        self._first = -1
        self._before: list[m.FileRange] = []

    def add(self, first: int, end: int) -> None:
        """Add the next files, [first, end)."""
        if first != self.end:
            self._before += self._last()
            self._first = first
        self.end = end

    def all(self) -> tuple[m.FileRange, ...]:
        """Return the ranges so far."""
        return (*self._before, *self._last())

    def _last(self) -> list[m.FileRange]:
        return [m.FileRange(self._first, self.end - self._first)] if self.end >= 0 else []
