"""Reading the file that is sent, and every way in which it can change meanwhile."""

import itertools
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from filestreamer.wire.digests import segment_digest
from filestreamer.wire.errors import Code, TransferFailed
from filestreamer.wire.messages import Entry, EntryType
from sender.source.item import Identity, Item, check_readable, look_in_place
from sender.source.reader import Reader
from tests.support.processes import own_descriptors


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
    before = own_descriptors()
    fails(Code.SOURCE, check_readable, os.fsencode(path.parent))
    check_readable(os.fsencode(path))
    reader = Reader()
    reader.look(listed(path))
    reader.close()
    assert before == own_descriptors()


@pytest.mark.parametrize(("distance", "count"), [(2, 4), (3, 3), (4, 2), (7, 2)])
def test_reading_a_run(path: Path, distance: int, count: int) -> None:
    """Side by side, with gaps that are read, with gaps that are not: the bytes of each piece."""
    reader, item = Reader(), listed(path)
    block = memoryview(bytearray(2 * count))
    offsets = range(1, 1 + count * distance, distance)
    reader.read_run(item, block, offsets, 2)
    digits = b"0123456789"
    assert bytes(block) == b"".join(digits[at : at + 2] for at in offsets)
    path.write_bytes(b"012")
    assert "changed" in fails(Code.SOURCE_CHANGED, reader.read_run, item, block, offsets, 2)
    reader.close()


def test_a_run_is_read_again_where_its_file_moves(path: Path) -> None:
    """As a segment is: what was hashed is what the file has, or it has changed."""
    reader, item = Reader(), listed(path)
    digests, offsets = [segment_digest(b"01"), segment_digest(b"45")], range(0, 8, 4)
    before = reader.look(item)
    path.chmod(0o600)
    assert reader.confirm_run(item, before, offsets, 2, digests) == reader.look(item) != before
    says = fails(Code.SOURCE_CHANGED, reader.confirm_run, item, before, offsets, 2, digests[::-1])
    assert "not the same" in says
    reader.close()


def test_reading_at_offsets(path: Path) -> None:
    reader, item = Reader(), listed(path)
    block = memoryview(bytearray(4))
    reader.read_into(item, block, 3)
    assert bytes(block) == b"3456"
    reader.read_into(item, block[:0], 10)
    reader.close()


def test_reading_beyond_the_end(path: Path) -> None:
    reader, item = Reader(), listed(path)
    reader.look(item)
    os.truncate(path, 9)
    message = fails(Code.SOURCE_CHANGED, reader.read_into, item, memoryview(bytearray(4)), 8)
    assert message.startswith(f"{path} changed while it was sent (its size went from 10 to 9 bytes)")
    reader.close()


def touch(path: Path) -> None:
    os.utime(path, ns=(0, 1))


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"x")


def shrink(path: Path) -> None:
    os.truncate(path, 5)


@pytest.mark.parametrize("change", [touch, grow, shrink])
def test_a_change_is_noticed(path: Path, change: object) -> None:
    reader, item = Reader(), listed(path)
    reader.look(item)
    look_in_place(item)
    assert callable(change)
    change(path)
    assert str(path) in fails(Code.SOURCE_CHANGED, reader.look, item)
    fails(Code.SOURCE_CHANGED, look_in_place, item)
    reader.close()


DIGEST = segment_digest(b"0123456789")


@pytest.mark.parametrize(
    "move",
    [
        lambda path: path.chmod(0o600),
        lambda path: os.link(path, path.with_name("another name")),
        lambda path: os.setxattr(path, "user.x", b"1"),
        lambda path: path.rename(path.with_name("another name")),
        lambda path: path.unlink(),
    ],
    ids=["chmod", "link", "setxattr", "rename", "unlink"],
)
def test_a_file_whose_ctime_alone_moved_is_read_again_and_is_the_same(path: Path, move: Callable[[Path], None]) -> None:
    reader, item = Reader(), listed(path)
    before = reader.look(item)
    move(path)
    after = reader.confirm(item, before, 0, 10, DIGEST)
    assert after == reader.look(item)
    assert after != before
    reader.close()


def test_other_bytes_under_the_same_size_and_mtime_are_found_by_reading_again(path: Path) -> None:
    """Only ctime tells that there is something to compare."""
    reader, item = Reader(), listed(path)
    before, status = reader.look(item), path.stat()
    path.write_bytes(b"9876543210")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert "its bytes are not the same" in fails(Code.SOURCE_CHANGED, reader.confirm, item, before, 0, 10, DIGEST)
    reader.close()


def test_a_file_whose_ctime_moves_each_time_that_it_is_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, item = Reader(), listed(path)
    before, ctime_ns, real = reader.look(item), itertools.count(), reader.look
    monkeypatch.setattr(reader, "look", lambda item: real(item)._replace(ctime_ns=next(ctime_ns)))
    assert "all the time" in fails(Code.SOURCE_CHANGED, reader.confirm, item, before, 0, 10, DIGEST)
    reader.close()


def test_a_whole_file_is_read_again_until_nobody_touches_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its bytes change behind the first read, and only its ctime tells."""
    reader, item, status, real = Reader(), listed(path), path.stat(), os.preadv
    block = memoryview(bytearray(10))

    def read_and_write(*args: object) -> int:
        count = real(*args)  # type: ignore[arg-type]
        monkeypatch.undo()
        path.write_bytes(b"9876543210")
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        return count

    monkeypatch.setattr(os, "preadv", read_and_write)
    reader.read_whole(item, block)
    assert bytes(block) == b"9876543210"
    reader.close()


def test_a_whole_file_that_somebody_touches_all_the_time(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, item, ctime_ns = Reader(), listed(path), itertools.count()
    real = reader.look
    monkeypatch.setattr(reader, "look", lambda item: real(item)._replace(ctime_ns=next(ctime_ns)))
    assert "all the time" in fails(Code.SOURCE_CHANGED, reader.read_whole, item, memoryview(bytearray(10)))
    reader.close()


@pytest.mark.parametrize("change", [touch, grow, shrink])
def test_a_whole_file_that_changes(path: Path, change: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch) -> None:
    reader, item, real = Reader(), listed(path), os.preadv

    def change_and_read(*args: object) -> int:
        change(path)
        return real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "preadv", change_and_read)
    assert str(path) in fails(Code.SOURCE_CHANGED, reader.read_whole, item, memoryview(bytearray(10)))
    reader.close()


@pytest.mark.parametrize("kind", [stat.S_IFSOCK, stat.S_IFIFO])
def test_what_is_no_file_any_more_has_changed(path: Path, kind: int) -> None:
    """A tree that is in use is sent with --tolerate changed; a socket can't even be opened."""
    reader, item = Reader(), listed(path)
    path.unlink()
    os.mknod(path, kind | 0o600)
    assert "another file took its place" in fails(Code.SOURCE_CHANGED, reader.look, item)
    reader.close()


def test_another_inode_number_is_no_change_where_the_file_system_does_not_keep_them(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """sshfs, GlusterFS. A file of another size or mtime has changed there, too."""
    item = listed(path)
    assert item.identity is not None
    moved = item._replace(identity=item.identity._replace(inode=1))
    reader = Reader()
    assert "another file took its place" in fails(Code.SOURCE_CHANGED, reader.look, moved)
    monkeypatch.setattr("sender.source.item.has_stable_inodes", lambda _: False)
    assert reader.look(moved) == item.identity
    touch(path)
    assert "its times changed" in fails(Code.SOURCE_CHANGED, reader.look, moved)
    reader.close()


def test_a_status_that_moves_where_it_says_nothing_of_the_bytes(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of /sys has the times at which the kernel last made its inode, which may be any moment."""
    item = listed(path)
    monkeypatch.setattr("sender.source.item.hides_sizes", lambda _: True)
    reader = Reader()
    assert reader.look(item) == item.identity
    touch(path)
    assert "sender -" in fails(Code.SOURCE, reader.look, item)
    reader.close()


def test_a_file_with_fewer_bytes_than_its_size(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of /sys: it has 4096 bytes by its status, and a few when it is read. It did not change."""
    reader, item = Reader(), listed(path)
    reader.look(item)
    monkeypatch.setattr(os, "preadv", lambda *_: 0)
    assert "sender -" in fails(Code.SOURCE, reader.read_into, item, memoryview(bytearray(10)), 0)
    reader.close()


def test_a_file_with_more_bytes_than_its_size(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As FUSE with direct_io may have it: its tail is not left out in silence."""
    reader, item = Reader(), listed(path)
    item = item._replace(entry=item.entry._replace(size=4))
    monkeypatch.setattr("sender.source.reader.has_true_sizes", lambda _: True)
    assert reader.confirm(item, reader.look(item), 0, 4, DIGEST) == reader.look(item)
    monkeypatch.setattr("sender.source.reader.has_true_sizes", lambda _: False)
    assert "sender -" in fails(Code.SOURCE, reader.confirm, item, reader.look(item), 0, 4, DIGEST)
    reader.close()


def test_reading_alone_changes_nothing(path: Path) -> None:
    reader, item = Reader(), listed(path)
    path.read_bytes()
    reader.read_into(item, memoryview(bytearray(10)), 0)
    look_in_place(item)
    reader.close()


def test_replaced(path: Path) -> None:
    """What is open stays the old file; that it is not the one of that name any more is noticed before Finish."""
    reader, item = Reader(), listed(path)
    reader.look(item)
    other = path.with_name("other")
    other.write_bytes(b"0123456789")
    other.rename(path)
    fails(Code.SOURCE_CHANGED, look_in_place, item)
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
    reader.look(item)
    (tmp_path / "directory").rename(tmp_path / "moved away")
    reader.look(item)
    assert "No such file" in fails(Code.SOURCE_CHANGED, look_in_place, item)
    (tmp_path / "another").rename(tmp_path / "directory")
    assert "another file took its place" in fails(Code.SOURCE_CHANGED, look_in_place, item)
    reader.close()


def test_removed(path: Path) -> None:
    reader, item = Reader(), listed(path)
    path.unlink()
    fails(Code.SOURCE_CHANGED, look_in_place, item)
    reader.close()
