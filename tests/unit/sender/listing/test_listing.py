"""What is looked at before anything is sent."""

import os
import threading
from pathlib import Path

import pytest

from filestreamer.telemetry.counters import TransferCounters
from filestreamer.wire.errors import Code, TransferFailed
from sender.listing.listing import ListingThread
from sender.listing.part_budget import PartBudget
from sender.listing.skipped_entries import SkippedEntries
from sender.mailbox import Mailbox
from sender.settings import parse
from sender.source.item import Item
from tests.support import trees


def listing(*paths: Path) -> ListingThread:
    settings, _ = parse([*map(str, paths), "--to", "127.0.0.1:1"], {})
    return ListingThread(settings, Mailbox(), SkippedEntries(TransferCounters(bytes(16), "x"), None))


def test_every_path_is_looked_at_before_the_walk_begins(tmp_path: Path) -> None:
    """Not when the walk comes to it, after an hour."""
    tree = trees.write(tmp_path / "tree" / "a", b"a").parent
    os.mkfifo(tmp_path / "fifo")
    for other in (tmp_path / "missing", tmp_path / "fifo"):
        with pytest.raises(TransferFailed, match=str(other)) as caught:
            listing(tree, other)
        assert caught.value.code is Code.SOURCE


def test_one_file_is_listed_at_once(tmp_path: Path) -> None:
    file = trees.write(tmp_path / "file", b"a")
    single = listing(file).single
    assert single is not None
    assert single.entry.path == b"file"
    assert listing(tmp_path).single is None
    assert listing(file, tmp_path).single is None


def test_a_walk_that_waits_for_room_ends_with_its_transfer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the part that is full and the last one, there are two that nobody makes room for any more."""
    for name in "abc":
        trees.write(tmp_path / name, b"a")
    walk = listing(tmp_path)

    class Budget(PartBudget):
        """Ends the transfer when a part is full."""

        def take(self, item: Item) -> bool:
            is_full = not super().take(item)
            if is_full:
                walk.stop()
            return not is_full

    monkeypatch.setattr("sender.listing.listing.PartBudget", Budget)
    monkeypatch.setattr("filestreamer.wire.limits.ENTRIES_PER_PART", 2)
    monkeypatch.setattr(walk, "_room", threading.Semaphore(0))
    walk.start()
    walk.join(10)
    assert not walk.is_alive()
