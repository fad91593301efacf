"""What is moved: one file or a tree of them, made anew for each case, and compared with each copy."""

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from filestreamer.wire.limits import KIB, MIB

FILES_PER_DIRECTORY: Final = 1000
BLOCK: Final = 4 * KIB
SEED: Final = 20261122


class Data(NamedTuple):
    """One file of that size, or a tree of `files` of sizes in between."""

    most_bytes: int
    least_bytes: int | None = None
    """None: all have `most_bytes`."""
    files: int = 1

    @property
    def room_bytes(self) -> int:
        """Say what it takes on disk, at most."""
        return self.files * (self.most_bytes + BLOCK)

    def scaled(self, factor: float) -> "Data":
        """Return as many smaller files, or fewer of the same size."""
        if self.files > 1:
            return self._replace(files=max(2, round(self.files * factor)))
        return self._replace(most_bytes=max(1, round(self.most_bytes * factor)))

    def make(self, path: Path) -> int:
        """Write it, of bytes that no compression makes fewer; return how many there are."""
        chance = random.Random(SEED)
        block = chance.randbytes(16 * MIB - 3)  # odd, so that no two chunks of a file are equal
        if self.files == 1:
            with path.open("wb") as file:
                for at in range(0, self.most_bytes, len(block)):
                    file.write(block[: self.most_bytes - at])
            return self.most_bytes
        least = self.most_bytes if self.least_bytes is None else self.least_bytes
        total = 0
        for number in range(self.files):
            directory = path / f"directory-{number // FILES_PER_DIRECTORY:04}"
            if number % FILES_PER_DIRECTORY == 0:
                directory.mkdir(parents=True)
            size, at = chance.randint(least, self.most_bytes), chance.randrange(len(block) - self.most_bytes)
            (directory / f"file-{number:07}").write_bytes(block[at : at + size])
            total += size
        return total


def difference(source: Path, target: Path, *, times: bool) -> str:
    """Say how the first file that differs does, in name, bytes or, if asked for, mtime; nothing where none differs."""
    ours, theirs = dict(_files(source)), dict(_files(target))
    if ours.keys() != theirs.keys():
        return f"only one has {min(ours.keys() ^ theirs.keys())}"
    for name, path in ours.items():
        copy = theirs[name]
        if not _same_bytes(path, copy):
            return f"other bytes in {name}"
        if times and path.stat().st_mtime_ns != copy.stat().st_mtime_ns:
            return f"another mtime of {name}"
    return ""


def _files(top: Path) -> Iterator[tuple[str, Path]]:
    if top.is_file():
        yield "the file", top
    for directory, _, names in os.walk(top):
        for name in names:
            path = Path(directory, name)
            yield str(path.relative_to(top)), path


def _same_bytes(one: Path, other: Path) -> bool:
    if one.stat().st_size != other.stat().st_size:
        return False
    with one.open("rb", buffering=0) as a, other.open("rb", buffering=0) as b:
        while block := a.read(256 * KIB):
            if block != b.read(len(block)):
                return False
    return True
