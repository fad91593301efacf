"""What another process does to the staging of a file is noticed before the file is committed."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from filestreamer.wire.digests import segment_digest
from filestreamer.wire.errors import Code
from filestreamer.wire.grid import Grid
from filestreamer.wire.messages import Segment
from receiver.disk.destination import Destination
from receiver.disk.staging.staging import Staging
from tests.support.staged_file import CONTENT, ENTRY, KEY, MIB, failure, fill, stage, staged_data, write


def whole(destination: Destination) -> Staging:
    """Stage a file that is all there, and what its segments hash to."""
    staged = stage(destination, Grid(8 * MIB, MIB))
    fill(staged, *range(8))
    staged.expected_digest = lambda index: segment_digest(bytes([index + 1]) * MIB)
    return staged


@pytest.mark.parametrize("length", [0, 1, 3 * MIB, 8 * MIB - 1])
@pytest.mark.parametrize("is_longer_again", [False, True], ids=["shorter", "longer again"])
def test_staging_that_was_shortened_is_not_put_in_place(
    path: Path, destination: Destination, length: int, *, is_longer_again: bool
) -> None:
    """Nor where writes at its end, or the thread that takes space, made it as long as before."""
    (path / "f").write_bytes(b"old")
    staged = whole(destination)
    os.truncate(staged_data(path), length)
    if is_longer_again and length < 8 * MIB - 4096:  # less than a block is no hole
        os.truncate(staged_data(path), 8 * MIB)
    message = failure(Code.DESTINATION, staged.commit)
    assert str(path / "f") in message
    assert "changed" in message
    assert staged.is_lost
    staged.close()
    assert (path / "f").read_bytes() == b"old"


def test_a_file_of_a_tree_that_was_shortened(path: Path, destination: Destination) -> None:
    staged = whole(destination)
    os.truncate(staged_data(path), 5 * MIB)
    assert "changed" in failure(Code.DESTINATION, staged.prepare)
    staged.close()
    assert not (path / "f").exists()


def test_zeros_that_the_disk_does_not_keep_are_no_damage(path: Path, destination: Destination) -> None:
    """A file system may have a hole where zeros were written: what counts is what is read."""
    staged = stage(destination, Grid(8 * MIB, MIB))
    staged.expected_digest = lambda _: segment_digest(bytes(MIB))
    staged.commit()
    staged.close()
    assert (path / "f").read_bytes() == bytes(8 * MIB)


def test_holes_of_a_file_are_no_damage(path: Path, destination: Destination) -> None:
    """What its sender told is not read again; what it did not tell is."""
    content = bytearray(b"x" * 8 * MIB)
    staged = stage(destination, Grid(8 * MIB, 4 * MIB), ENTRY._replace(data_bytes=3 * MIB))
    for segment in (
        Segment(0, 0, 4 * MIB, (0, MIB, MIB + 5, 2 * MIB - 5)),
        Segment(0, 4 * MIB, 4 * MIB, (MIB, 3 * MIB)),
    ):
        staged.begin_sparse(segment)
        for start, end, is_data in segment.pieces():
            if is_data:
                staged.write(memoryview(content)[start:end], start)
            else:
                content[start:end] = bytes(end - start)
        staged.known_holes.count(segment)
    assert list(staged.known_holes.suspects(staged.fd)) == []
    staged.commit()
    staged.close()
    assert (path / "f").read_bytes() == content


def test_a_hole_at_the_end_of_a_file_that_ends_in_the_middle_of_a_block(path: Path, destination: Destination) -> None:
    staged = stage(destination, Grid(2 * MIB - 1000, MIB), ENTRY._replace(data_bytes=MIB))
    fill(staged, 0)
    last = Segment(0, MIB, MIB - 1000, (0, MIB - 1000))
    staged.begin_sparse(last)
    staged.known_holes.count(last)
    os.truncate(staged_data(path), 2 * MIB - 1000)
    assert list(staged.known_holes.suspects(staged.fd)) == []
    staged.close()


def test_a_segment_with_many_holes_that_nobody_told_is_read_once(path: Path, destination: Destination) -> None:
    """A file system may have thousands of them in a segment, and a file thousands of such segments."""
    staged = stage(destination, Grid(4 * MIB, 2 * MIB))
    for at in range(0, 4 * MIB, 64 << 10):
        staged.write(memoryview(bytes(4096)), at)
    os.truncate(staged_data(path), 4 * MIB)
    assert list(staged.known_holes.suspects(staged.fd)) == [0, 1]
    staged.close()


def test_a_stream_that_was_shortened(path: Path, destination: Destination) -> None:
    """It is noticed by the next bytes: they would make it long enough again."""
    staged = stage(destination, Grid(0, MIB))
    staged.append(memoryview(CONTENT), 0)
    os.truncate(staged_data(path), 3)
    assert "changed" in failure(Code.DESTINATION, staged.append, memoryview(CONTENT), len(CONTENT))
    staged.close()


@pytest.fixture
def usurper(destination: Destination, path: Path) -> Iterator[tuple[Staging, Staging]]:
    """Return a staging whose files were removed, and that of another process which began again."""
    first = stage(destination)
    write(first, 0, 1, 2, 3)
    for name in os.listdir(path / ".filestreamer"):
        (path / ".filestreamer" / name).unlink()
    other = Destination(str(path))
    second = stage(other)
    write(second, 0, 1)
    yield first, second
    first.close()
    second.close()
    other.close()


@pytest.mark.parametrize("act", ["discard", "close", "commit", "put", "give_back"])
def test_who_lost_its_staging_leaves_another_ones_alone(
    path: Path, usurper: tuple[Staging, Staging], destination: Destination, act: str
) -> None:
    first, second = usurper
    match act:
        case "commit":
            failure(Code.DESTINATION, first.commit)
        case "put":
            failure(Code.DESTINATION, first.prepare)
        case "give_back":
            first.give_back([(0, len(CONTENT))], 0)
        case _:
            getattr(first, act)()
    first.close()
    write(second, 2, 3)
    second.commit()
    assert (path / "f").read_bytes() == CONTENT


@pytest.mark.parametrize("missing", [".data", ".ledger"])
def test_who_lost_half_of_its_staging(path: Path, destination: Destination, missing: str) -> None:
    """It may share the other half with a process that began again: it puts nothing in place."""
    first = stage(destination)
    write(first, 0, 1, 2, 3)
    (path / ".filestreamer" / f"{KEY}{missing}").unlink()
    failure(Code.DESTINATION, first.commit)
    first.close()
    assert not (path / "f").exists()


@pytest.mark.parametrize("suffix", [".data", ".ledger"])
def test_a_second_name_is_no_reason_to_take_a_staging_away(
    path: Path, destination: Destination, tmp_path: Path, suffix: str
) -> None:
    """A backup of hard links is made of it, then another process comes: BUSY, and the first one completes."""
    first = stage(destination)
    write(first, 0)
    os.link(path / ".filestreamer" / f"{KEY}{suffix}", tmp_path / "backup")
    other = Destination(str(path))
    assert "another process" in failure(Code.BUSY, stage, other)
    other.close()
    write(first, 1, 2, 3)
    first.commit()
    first.close()
    assert (path / "f").read_bytes() == CONTENT
