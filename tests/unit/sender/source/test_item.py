"""A file that the user names: what is refused at once."""

import os
from pathlib import Path

import pytest

from filestreamer.wire.errors import Code, TransferFailed
from filestreamer.wire.messages import Entry, EntryType, SkipKind
from sender.source.directories import Directories
from sender.source.item import Identity, Item, Unsendable, check_empty, check_readable


def refused(path: Path) -> str:
    """Return why a file can't be sent."""
    with pytest.raises(TransferFailed) as caught:
        check_readable(os.fsencode(path))
    assert caught.value.code is Code.SOURCE
    return str(caught.value)


def test_missing(tmp_path: Path) -> None:
    path = tmp_path / "missing"
    assert refused(path) == f"can't read {path}: No such file or directory"


def test_a_fifo_is_refused_without_waiting_for_a_writer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    assert "not a regular file" in refused(tmp_path / "fifo")


def test_what_is_not_a_regular_file_is_to_be_sent_as_standard_input(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", Path("/dev/null"), tmp_path):
        assert f"make it the standard input: sender - --as NAME < {path}" in refused(path)


def empty(path: Path) -> Item:
    """Return the item of a file that says that it has no bytes."""
    status = path.stat()
    assert status.st_size == 0
    return Item(Entry(b"f", EntryType.FILE, 0, 0o644, 0), os.fsencode(path), Identity.of(status))


def test_a_file_of_proc_that_says_it_is_empty_is_refused_unread() -> None:
    path = Path("/proc/version")
    with pytest.raises(Unsendable, match=r"cat FILE \| sender -") as caught:
        check_empty(empty(path), path.stat(), Directories(1))
    assert caught.value.kind is SkipKind.UNREADABLE
    assert caught.value.code is Code.SOURCE


def test_a_file_of_an_unknown_file_system_is_read_to_see_if_it_is_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "f").touch()
    check_empty(empty(tmp_path / "f"), (tmp_path / "f").stat(), Directories(1))
    monkeypatch.setattr("sender.source.item.has_true_sizes", lambda _: False)
    check_empty(empty(tmp_path / "f"), (tmp_path / "f").stat(), Directories(1))
    monkeypatch.setattr("sender.source.item.hides_sizes", lambda _: False)
    with pytest.raises(Unsendable, match="its size is not known"):  # as FUSE with direct_io
        check_empty(empty(Path("/proc/version")), Path("/proc/version").stat(), Directories(1))
