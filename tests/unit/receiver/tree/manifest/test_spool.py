"""What a tree keeps on the disk, in a file without a name."""

import errno
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from filestreamer.wire.errors import Code, TransferFailed
from receiver.tree.manifest import spool as module
from receiver.tree.manifest.spool import Spool


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


def test_what_is_updated_takes_space_only_where_it_changes(spool: Spool, seed: int) -> None:
    """A file of millions of segments is reserved in a few bytes of a manifest."""
    rng = random.Random(seed)
    size = 8 << 20
    at = spool.reserve(size)
    kept = bytearray(size)
    for _ in range(20):
        start = rng.randrange(size - 20_000)
        kept[start : start + 20_000] = rng.choice([bytes(20_000), rng.randbytes(20_000)])
        spool.update(at, kept)
        assert spool.read(at, size) == kept
    assert os.fstat(spool._fd).st_blocks * 512 < size // 4


def test_a_full_disk(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(TransferFailed) as caught:
        spool.append(bytes(module.GATHER_BYTES))
    assert caught.value.code is Code.NO_SPACE
