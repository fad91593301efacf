"""What a tree keeps on the disk, and the small tables that it keeps in memory."""

import errno
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from filestreamer.wire.errors import Code, TransferFailed, from_os_error
from receiver.disk.descriptors import DescriptorPool, directories, places
from receiver.tree.manifest import spool as module
from receiver.tree.manifest.spool import Spool
from receiver.tree.top_level_names import Names


@pytest.fixture(params=["without a name", "by its name"])
def spool(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Spool]:
    if request.param == "by its name":
        monkeypatch.setattr(os, "O_TMPFILE", os.O_DIRECTORY)  # what a file system does that has none
    fd = os.open(tmp_path, os.O_RDONLY)
    made = Spool(fd, str(tmp_path))
    os.close(fd)
    assert os.listdir(tmp_path) == []
    yield made
    made.close()


def test_what_was_written_is_read_back(spool: Spool, seed: int) -> None:
    rng = random.Random(seed)
    kept: dict[int, bytes] = {}
    for _ in range(400):
        size = rng.choice([1, 17, 5000, module.GATHER_BYTES, 3 * module.GATHER_BYTES])
        if rng.random() < 0.3:
            kept[spool.reserve(size)] = bytes(size)
        else:
            data = rng.randbytes(size)
            kept[spool.append(data)] = data
        at = rng.choice(list(kept))
        assert spool.read(at, len(kept[at])) == kept[at]
        start = rng.randrange(len(kept[at]))
        new = rng.randbytes(rng.randrange(len(kept[at]) - start))
        spool.write(at + start, new)
        kept[at] = kept[at][:start] + new + kept[at][start + len(new) :]
    assert all(spool.read(at, len(data)) == data for at, data in kept.items())
    assert 0 not in kept


def test_a_full_disk(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(TransferFailed) as caught:
        spool.append(bytes(module.GATHER_BYTES))
    assert caught.value.code is Code.NO_SPACE


def test_names_are_found_and_others_are_not(seed: int) -> None:
    names = Names()
    rng = random.Random(seed)
    added = [rng.randbytes(rng.randrange(1, 40)) + b"!" for _ in range(20_000)]
    for name in added:
        names.add(name)
        names.add(name)
    assert all(name in names for name in added)
    assert not any(name + b"?" in names for name in added)
    assert names.growth_bytes(0) == 0
    assert 8 * 20_000 < names.growth_bytes(60_000) <= 8 * 4 * 80_000


def test_places_are_shared() -> None:
    shared = DescriptorPool(4)
    shared.enter("a")
    assert [shared.try_take("a") for _ in range(5)] == [True] * 4 + [False]
    shared.enter("b")
    assert shared.try_take("b"), "one is for each tree, in any case"
    assert not shared.try_take("b")
    assert shared.excess("a") == 2
    shared.give_back("a")
    shared.give_back("a")
    assert shared.try_take("b")
    assert not shared.try_take("a")
    shared.leave("b")
    assert [shared.try_take("a") for _ in range(3)] == [True, True, False]


@pytest.mark.parametrize("allowed", [16, 64, 256, 1024, 1 << 20])
def test_something_is_left_of_few_descriptors(allowed: int) -> None:
    assert 1 <= places(allowed) * 3 <= max(3, allowed // 4)
    assert 2 <= directories(allowed) <= max(2, allowed // 8)


@pytest.mark.parametrize("code", [Code.DESTINATION, Code.SOURCE])
@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
def test_too_many_open_files_is_retryable(code: Code, number: int) -> None:
    error = from_os_error(OSError(number, os.strerror(number)), code, "can't open it")
    assert (error.code, error.retryable) == (Code.LIMIT, True)
