"""The holes of a sparse file: which of them are listed."""

from pathlib import Path

from filestreamer.wire.limits import HOLES_PER_FILE, KIB
from filestreamer.wire.messages import Hole
from sender.source.holes import find_holes
from tests.support import trees


def islands(*found: Hole, size: int) -> list[tuple[int, int]]:
    """Return what is not in holes."""
    edges = [0, *(edge for hole in found for edge in (hole.offset, hole.offset + hole.length)), size]
    return [(start, end) for start, end in zip(edges[::2], edges[1::2], strict=True) if start < end]


def holes_of(path: Path) -> tuple[Hole, ...]:
    with path.open("rb") as file:
        return find_holes(file.fileno(), path.stat().st_size)


def test_holes(tmp_path: Path) -> None:
    file = trees.sparse(tmp_path / "f", 1000 * KIB, (300 * KIB, b"middle"), (999 * KIB, b"end"))
    found = holes_of(file)
    content = file.read_bytes()
    assert found
    for hole in found:
        assert content[hole.offset : hole.offset + hole.length] == bytes(hole.length)
    assert sum(end - start for start, end in islands(*found, size=1000 * KIB)) <= 128 * KIB


def test_small_holes_are_not_worth_it_unless_they_are_all(tmp_path: Path) -> None:
    assert holes_of(trees.sparse(tmp_path / "f", 40 * KIB, (0, b"x"))) == ()
    assert holes_of(trees.sparse(tmp_path / "g", 100)) == (Hole(0, 100),)


def test_of_too_many_holes_the_largest_are_listed(tmp_path: Path) -> None:
    step = 72 * KIB
    file = trees.sparse(tmp_path / "f", (HOLES_PER_FILE + 50) * step, *[(at * step, b"x") for at in range(1100)])
    found = holes_of(file)
    assert len(found) == HOLES_PER_FILE
    assert sorted(found) == list(found)
