"""The holes of a sparse file: found where they are, asked for as seldom as possible, and told as runs."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from filestreamer.wire.limits import KIB
from filestreamer.wire.messages import Segment
from sender.source.holes import Extents, runs_of
from tests.support import trees

SIZE = 1000 * KIB


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    path = trees.sparse(tmp_path / "f", SIZE, (300 * KIB, b"x" * 100 * KIB), (700 * KIB, b"y"))
    with path.open("rb") as opened:
        yield opened.fileno()


def test_holes(file: int) -> None:
    extents = Extents(file, SIZE)
    found = extents.holes_in(0, SIZE)
    data = [(300 * KIB, 400 * KIB), (700 * KIB, 704 * KIB)]
    assert found == [(0, data[0][0]), (data[0][1], data[1][0]), (data[1][1], SIZE)]
    assert extents.holes_in(350 * KIB, 410 * KIB) == [(400 * KIB, 410 * KIB)]
    assert extents.holes_in(310 * KIB, 390 * KIB) == []


def test_where_a_hole_ends(file: int) -> None:
    extents = Extents(file, SIZE)
    assert extents.hole_end(5) == 300 * KIB
    assert extents.hole_end(300 * KIB) == 300 * KIB
    assert extents.hole_end(800 * KIB) == SIZE


def test_data_is_asked_for_once(file: int, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    real = os.lseek

    def lseek(fd: int, at: int, how: int) -> int:
        asked.append(at)
        return real(fd, at, how)

    monkeypatch.setattr(os, "lseek", lseek)
    extents = Extents(file, SIZE)
    for at in range(300, 400, 4):
        assert extents.holes_in(at * KIB, (at + 4) * KIB) == []
    assert len(asked) == 1


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.EIO], ids=errno.errorcode.get)
@pytest.mark.parametrize("whence", [os.SEEK_HOLE, os.SEEK_DATA], ids=["hole", "data"])
def test_where_holes_can_not_be_told_all_is_data(
    file: int, monkeypatch: pytest.MonkeyPatch, number: int, whence: int
) -> None:
    """What can't be told to be a hole is sent: data might lie in it."""
    real = os.lseek

    def lseek(fd: int, at: int, how: int) -> int:
        if how == whence:
            raise OSError(number, os.strerror(number))
        return real(fd, at, how)

    monkeypatch.setattr(os, "lseek", lseek)
    extents = Extents(file, SIZE)
    assert extents.holes_in(0, SIZE) == []
    assert extents.hole_end(500 * KIB) == 500 * KIB


def test_a_file_that_is_written_to_meanwhile_is_data(file: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file system may say that a hole begins where data begins: that must not be asked for ever."""
    monkeypatch.setattr(os, "lseek", lambda _, at, __: at)
    assert Extents(file, SIZE).holes_in(0, SIZE) == []


@pytest.mark.parametrize(
    ("holes", "most", "runs"),
    [
        ([], 99, ()),
        ([(100, 108)], 99, (0, 8)),
        ([(100, 102)], 99, (0, 2, 6)),
        ([(106, 108)], 99, (6, 2)),
        ([(101, 103), (104, 107)], 99, (1, 2, 1, 3, 1)),
        ([(101, 103), (104, 107)], 5, (1, 2, 1, 3, 1)),
        ([(101, 103), (104, 107)], 4, (4, 3, 1)),
        ([(100, 102), (104, 107)], 3, (4, 3, 1)),
        ([(100, 102)], 2, ()),
        ([(100, 102)], 0, ()),
    ],
)
def test_runs(holes: list[tuple[int, int]], most: int, runs: tuple[int, ...]) -> None:
    """The smallest holes are left out where there are too many."""
    assert runs_of(Segment(0, 100, 8), holes, most) == runs
