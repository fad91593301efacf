"""The file that is sent: what is refused, and every way in which it can change under the sender."""

import os
from pathlib import Path

import pytest

from sender.source import Source
from wire.errors import Code, TransferFailed


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


def test_what_it_says_of_itself(path: Path) -> None:
    source = Source(str(path))
    assert (source.size, source.mode, source.mtime_ns) == (10, 0o640, 1_234_567_890_123_456_789)
    source.close()


def test_a_symlink_leads_to_its_file(path: Path) -> None:
    link = path.with_name("link")
    link.symlink_to(path)
    source = Source(str(link))
    assert source.size == 10
    source.check_in_place()
    source.close()


def test_missing(tmp_path: Path) -> None:
    path = str(tmp_path / "missing")
    assert fails(Code.SOURCE, Source, path) == f"can't read {path}: No such file or directory"


def test_a_directory_is_not_sent_yet(tmp_path: Path) -> None:
    message = fails(Code.SOURCE, Source, str(tmp_path))
    assert message.startswith(f"can't send {tmp_path}: ")
    assert "not yet" in message


def test_a_fifo_is_refused_without_waiting_for_a_writer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    assert "not a regular file" in fails(Code.SOURCE, Source, str(tmp_path / "fifo"))


def test_refused_files_are_closed(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    fails(Code.SOURCE, Source, str(tmp_path))
    assert before == len(os.listdir("/proc/self/fd"))


def test_reading_at_offsets(path: Path) -> None:
    source = Source(str(path))
    block = memoryview(bytearray(4))
    source.read_into(block, 3)
    assert bytes(block) == b"3456"
    source.read_into(block[:0], 10)
    source.close()


def test_reading_beyond_the_end(path: Path) -> None:
    source = Source(str(path))
    message = fails(Code.SOURCE_CHANGED, source.read_into, memoryview(bytearray(4)), 8)
    assert message.startswith(f"{path} changed while it was sent (it is shorter than it was)")
    source.close()


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
    source = Source(str(path))
    source.check_unchanged()
    source.check_in_place()
    assert callable(change)
    change(path)
    assert str(path) in fails(Code.SOURCE_CHANGED, source.check_unchanged)
    fails(Code.SOURCE_CHANGED, source.check_in_place)
    source.close()


def test_reading_alone_changes_nothing(path: Path) -> None:
    source = Source(str(path))
    path.read_bytes()
    source.read_into(memoryview(bytearray(10)), 0)
    source.check_in_place()
    source.close()


def test_replaced(path: Path) -> None:
    """What is read stays the old file; that it is not the one of that name any more is noticed before Finish."""
    source = Source(str(path))
    other = path.with_name("other")
    other.write_bytes(b"0123456789")
    other.rename(path)
    fails(Code.SOURCE_CHANGED, source.check_in_place)
    block = memoryview(bytearray(10))
    source.read_into(block, 0)
    assert bytes(block) == b"0123456789"
    source.close()


def test_another_directory_in_its_place(tmp_path: Path) -> None:
    """The file itself is as it was, times and all; its path leads to another one."""
    path = tmp_path / "directory" / "f"
    for directory in ("directory", "another"):
        (tmp_path / directory).mkdir()
        (tmp_path / directory / "f").write_bytes(b"0123456789")
    source = Source(str(path))
    (tmp_path / "directory").rename(tmp_path / "moved away")
    source.check_unchanged()
    assert "No such file" in fails(Code.SOURCE_CHANGED, source.check_in_place)
    (tmp_path / "another").rename(tmp_path / "directory")
    assert "another file took its place" in fails(Code.SOURCE_CHANGED, source.check_in_place)
    source.close()


def test_removed(path: Path) -> None:
    source = Source(str(path))
    path.unlink()
    fails(Code.SOURCE_CHANGED, source.check_in_place)
    source.close()
