"""What the sender of a tree is told of the files of a portion, as they are now."""

from collections.abc import Iterator

from receiver import portion as state
from receiver.portion import Portion
from wire import limits
from wire import messages as m


def answers(portion: Portion) -> Iterator[m.Message]:
    """Say of each file of a portion what is known of it now."""
    needed: list[m.FileRange] = []
    unchecked: list[m.FileRange] = []
    rest: list[m.Message] = []
    with portion.lock:
        for index, kind in enumerate(portion.states()):
            file_id = portion.first + index
            large = portion.large.get(index)
            if kind == state.UNCHECKED:
                _extend(unchecked, file_id)
            elif large is not None and large.stake is not None:
                answer = large.stake.answer()
                rest += large.stake.needed_messages(file_id, answer.needed)
                rest += large.stake.held_messages(file_id, answer.held)
            elif kind in (state.FREE, state.WRITING):
                _extend(needed, file_id)
            elif kind in (state.VERIFIED, state.HELD):
                rest += held(portion, index, final=kind == state.HELD)
            elif kind == state.NOTHING and needed and needed[-1].first_file_id + needed[-1].files == file_id:
                needed[-1] = needed[-1]._replace(files=needed[-1].files + 1)
    if needed:
        yield m.Needed(tuple(needed), ())
    if unchecked:
        yield m.Held(unchecked[0].first_file_id, 0, b"", tuple(unchecked))
    yield from rest


def held(portion: Portion, index: int, *, final: bool) -> Iterator[m.Held]:
    """Tell the digests of a file that is here whole."""
    file_id = portion.first + index
    large = portion.large.get(index)
    if large is None:
        yield m.Held(file_id, 0, portion.digest(index), (), final)
        return
    size = limits.DIGEST_BYTES
    for first, end in large.runs():
        for at in range(first, end, limits.DIGESTS_PER_HELD):
            stop = min(at + limits.DIGESTS_PER_HELD, end)
            yield m.Held(file_id, at, large.digests[at * size : stop * size], (), final)


def _extend(ranges: list[m.FileRange], file_id: int) -> None:
    """Add the next file to ranges."""
    if ranges and ranges[-1].first_file_id + ranges[-1].files == file_id:
        ranges[-1] = ranges[-1]._replace(files=ranges[-1].files + 1)
    else:
        ranges.append(m.FileRange(file_id, 1))
