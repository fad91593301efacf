"""Reading the file that is sent, and every way in which it can change meanwhile."""

import os
from pathlib import Path

import pytest

from filestreamer.wire.errors import Code, TransferFailed
from filestreamer.wire.messages import Entry, EntryType
from sender.source.item import Identity, Item, check_in_place, check_readable
from sender.source.reader import Reader


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "f"
    path.write_bytes(b"0123456789")
    path.chmod(0o640)
    os.utime(path, ns=(0, 1_234_567_890_123_456_789))
    return path


def fails(code: Code, make: object, *args: object) -> str:
    """Call something that fails; return the line that says why."""
    assert callable(make)
    with pytest.raises(TransferFailed) as caught:
        make(*args)
    assert code is caught.value.code
    assert "\n" not in str(caught.value)
    return str(caught.value)


def listed(path: Path) -> Item:
    """Return the item of a file as it is now."""
    status = path.stat()
    entry = Entry(b"f", EntryType.FILE, status.st_size, 0o640, status.st_mtime_ns)
    return Item(entry, os.fsencode(path), Identity.of(status))


def test_looking_leaves_nothing_open(path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    fails(Code.SOURCE, check_readable, os.fsencode(path.parent))
    check_readable(os.fsencode(path))
    reader = Reader()
    reader.check_unchanged(listed(path))
    reader.close()
    assert before == len(os.listdir("/proc/self/fd"))


def test_reading_at_offsets(path: Path) -> None:
    reader, item = Reader(), listed(path)
    block = memoryview(bytearray(4))
    reader.read_into(item, block, 3)
    assert bytes(block) == b"3456"
    reader.read_into(item, block[:0], 10)
    reader.close()


def test_reading_beyond_the_end(path: Path) -> None:
    reader, item = Reader(), listed(path)
    message = fails(Code.SOURCE_CHANGED, reader.read_into, item, memoryview(bytearray(4)), 8)
    assert message.startswith(f"{path} changed while it was sent (it is shorter than it was)")
    reader.close()


def touch(path: Path) -> None:
    os.utime(path, ns=(0, 1))


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"x")


def shrink(path: Path) -> None:
    os.truncate(path, 5)


def rewrite_with_the_same_size_and_mtime(path: Path) -> None:
    """Only ctime tells."""
    status = path.stat()
    path.write_bytes(b"9876543210")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("change", [touch, grow, shrink, rewrite_with_the_same_size_and_mtime])
def test_a_change_is_noticed(path: Path, change: object) -> None:
    reader, item = Reader(), listed(path)
    reader.check_unchanged(item)
    check_in_place(item)
    assert callable(change)
    change(path)
    assert str(path) in fails(Code.SOURCE_CHANGED, reader.check_unchanged, item)
    fails(Code.SOURCE_CHANGED, check_in_place, item)
    reader.close()


def test_reading_alone_changes_nothing(path: Path) -> None:
    reader, item = Reader(), listed(path)
    path.read_bytes()
    reader.read_into(item, memoryview(bytearray(10)), 0)
    check_in_place(item)
    reader.close()


def test_replaced(path: Path) -> None:
    """What is open stays the old file; that it is not the one of that name any more is noticed before Finish."""
    reader, item = Reader(), listed(path)
    reader.check_unchanged(item)
    other = path.with_name("other")
    other.write_bytes(b"0123456789")
    other.rename(path)
    fails(Code.SOURCE_CHANGED, check_in_place, item)
    block = memoryview(bytearray(10))
    reader.read_into(item, block, 0)
    assert bytes(block) == b"0123456789"
    reader.close()


def test_another_directory_in_its_place(tmp_path: Path) -> None:
    """The file itself is as it was, times and all; its path leads to another one."""
    path = tmp_path / "directory" / "f"
    for directory in ("directory", "another"):
        (tmp_path / directory).mkdir()
        (tmp_path / directory / "f").write_bytes(b"0123456789")
    reader, item = Reader(), listed(path)
    reader.check_unchanged(item)
    (tmp_path / "directory").rename(tmp_path / "moved away")
    reader.check_unchanged(item)
    assert "No such file" in fails(Code.SOURCE_CHANGED, check_in_place, item)
    (tmp_path / "another").rename(tmp_path / "directory")
    assert "another file took its place" in fails(Code.SOURCE_CHANGED, check_in_place, item)
    reader.close()


def test_removed(path: Path) -> None:
    reader, item = Reader(), listed(path)
    path.unlink()
    fails(Code.SOURCE_CHANGED, check_in_place, item)
    reader.close()
