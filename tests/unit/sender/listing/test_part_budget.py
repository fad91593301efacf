"""How many entries a part takes: never more than fit into a frame."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from filestreamer.wire import limits
from filestreamer.wire.codec import encode
from filestreamer.wire.messages import Entry, EntryType, ManifestPart
from sender.listing.part_budget import PartBudget, encoded_bytes
from sender.source.item import Identity, Item


def item(entry: Entry) -> Item:
    return Item(entry, b"/nowhere", Identity(1, 1, entry.size, 0, 0))


def listed(path: int, link: int, numbers: list[int], **more: Any) -> Entry:
    """Return an entry with texts and numbers of these lengths."""
    size, mtime_ns, group = numbers
    return Entry(
        bytes(path),
        EntryType.FILE,
        size,
        0o777,
        mtime_ns,
        None,
        None,
        bytes(link),
        abs(group),
        data_bytes=size,
    )._replace(**more)


entries = st.builds(
    listed,
    st.sampled_from([1, 40, 255, limits.PATH_BYTES]),
    st.sampled_from([0, 127, 128, limits.PATH_BYTES]),
    st.lists(st.integers(0, (1 << 63) - 1), min_size=3, max_size=3),
    uid=st.one_of(st.none(), st.integers(0, (1 << 32) - 2)),
    mtime_ns=st.integers(-(1 << 63), (1 << 63) - 1),
)


@given(entries)
def test_an_entry_takes_no_more_than_is_reckoned(entry: Entry) -> None:
    alone = len(encode(ManifestPart(0, (entry,), True)))
    assert alone <= encoded_bytes(item(entry)) + 16  # those are the frame's own


@given(st.lists(entries, max_size=60))
def test_what_there_is_room_for_is_a_frame(found: list[Entry]) -> None:
    """Whatever is listed goes into parts, none of which is over the limit of a frame, in order."""
    parts: list[list[Entry]] = [[]]
    budget = PartBudget()
    for entry in found:
        if not budget.take(item(entry)):
            parts.append([])
            budget = PartBudget()
            assert budget.take(item(entry))
        parts[-1].append(entry)
    for part in parts:
        encode(ManifestPart((1 << 63) - 1, tuple(part), True))
    assert all(parts) or not found


def test_a_part_has_as_many_entries_as_the_protocol_allows() -> None:
    budget = PartBudget()
    short = item(Entry(b"x", EntryType.DIRECTORY, 0, 0o755, 0))
    taken = 0
    while budget.take(short):
        taken += 1
    assert 500 < taken <= limits.ENTRIES_PER_PART
