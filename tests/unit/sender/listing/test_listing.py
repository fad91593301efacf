"""What is looked at before anything is sent."""

import os
from pathlib import Path

import pytest

from filestreamer.telemetry.counters import TransferCounters
from filestreamer.wire.errors import Code, TransferFailed
from sender.listing.listing import ListingThread
from sender.listing.skipped_entries import SkippedEntries
from sender.mailbox import Mailbox
from sender.settings import parse
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
