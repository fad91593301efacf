"""Buffers are cut from arenas: each belongs to one owner, and goes with its last view."""

import errno
import mmap  # noqa: TID251 - its name is replaced
import os
import weakref

import pytest

from filestreamer.wire import limits
from filestreamer.wire.sockets.memory import ARENA_BYTES, Arenas, mapped

SIZE = limits.BLOCK_BYTES + 12


def test_no_two_buffers_share_a_byte() -> None:
    arenas = Arenas()
    buffers = [arenas.buffer(SIZE) for _ in range(2 * ARENA_BYTES // SIZE)]
    for number, view in enumerate(buffers):
        assert (len(view), view.readonly) == (SIZE, False)
        view[:] = bytes([number]) * SIZE
    assert [set(view) for view in buffers] == [{number} for number in range(len(buffers))]


def test_an_arena_goes_with_the_last_view_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class Map(mmap.mmap):
        pass

    monkeypatch.setattr(mmap, "mmap", Map)
    arenas = Arenas()
    first = arenas.buffer(ARENA_BYTES)
    arena = weakref.ref(first.obj)
    second = arenas.buffer(ARENA_BYTES)
    part = first[:10]
    del first
    assert arena() is not None
    del part
    assert arena() is None
    assert len(second) == ARENA_BYTES


def test_without_huge_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refuses(mmap.mmap):
        def madvise(self, *_: int) -> None:
            raise OSError(22, os.strerror(22))

    monkeypatch.setattr(mmap, "mmap", Refuses)
    assert bytes(Arenas().buffer(SIZE)) == bytes(SIZE)


def test_no_memory_is_no_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_args: object) -> mmap.mmap:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    monkeypatch.setattr("mmap.mmap", fail)
    with pytest.raises(MemoryError):
        Arenas().buffer(1)


@pytest.mark.parametrize("huge", [False, True])
def test_what_lives_for_itself_goes_by_itself(monkeypatch: pytest.MonkeyPatch, huge: bool) -> None:
    class Map(mmap.mmap):
        pass

    monkeypatch.setattr(mmap, "mmap", Map)
    views = [mapped(SIZE, huge=huge) for _ in range(3)]
    for number, view in enumerate(views):
        view[:] = bytes([number + 1]) * SIZE
    pages = [weakref.ref(view.obj) for view in views]
    del view
    views.pop(1)
    assert [page() is None for page in pages] == [False, True, False]
    assert [set(view) for view in views] == [{1}, {3}]
