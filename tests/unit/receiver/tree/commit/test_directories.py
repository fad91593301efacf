"""Directories below the destination: none of them is staging, whatever name leads to it."""

import os
import subprocess
import tempfile
from pathlib import Path

import pytest

from filestreamer.wire import limits
from filestreamer.wire.errors import Code
from receiver.disk.destination import Destination
from receiver.tree.commit.directories import Directories
from receiver.tree.commit.places import Places
from tests.support.staged_file import failure


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting takes root")
@pytest.mark.parametrize("name", ["FILEST~1", "dossier é"])
def test_another_name_of_staging_is_not_entered(tmp_path: Path, name: str) -> None:
    """As FAT has short names; here a mount is the other name."""
    for directory in (".filestreamer", name, "below~1"):
        (tmp_path / directory).mkdir()
    destination = Destination(str(tmp_path))
    directories = Directories(destination, Places(destination))
    subprocess.run(["mount", "--bind", tmp_path / ".filestreamer", tmp_path / name], check=True)
    try:
        assert "staging" in failure(Code.PATH, directories.get, os.fsencode(name))
        assert directories.get(b"below~1").fd >= 0
    finally:
        subprocess.run(["umount", "--lazy", tmp_path / name], check=True)
        directories.close()
        destination.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="root becomes another user, whom modes hold up")
@pytest.mark.parametrize("mode", [0o300, 0o111, 0o000])
def test_the_owner_enters_a_directory_that_its_mode_closes(mode: int) -> None:
    """An earlier run gave it the mode of the source."""
    with tempfile.TemporaryDirectory(dir="/tmp") as above:  # another user can't enter the directory of the tests
        os.chown(above, 1234, 1234)
        os.seteuid(1234)
        try:
            (Path(above) / "closed").mkdir()
            (Path(above) / "closed").chmod(mode)
            destination = Destination(above)
            directories = Directories(destination, Places(destination))
            assert directories.make(b"closed", mode).is_writable
            directories.close()
            destination.close()
        finally:
            os.seteuid(0)


@pytest.mark.parametrize("moved", ["a", "a/b", "a/b/c"])
@pytest.mark.parametrize("is_linked", [True, False])
def test_a_directory_that_is_open_and_was_moved_away(tmp_path: Path, moved: str, *, is_linked: bool) -> None:
    """Neither it nor what is below it is entered again, also not through a symlink that leads to it."""
    destination = Destination(str(tmp_path))
    directories = Directories(destination, Places(destination))
    for path in (b"a", b"a/b", b"a/b/c", b"x"):
        directories.make(path, 0o755)
    (tmp_path / moved).rename(tmp_path / "elsewhere")
    if is_linked:
        (tmp_path / moved).symlink_to(tmp_path / "elsewhere")
    directories.look_again()
    for path in (b"a/b/c", b"a/b/c/new"):
        assert "moved" in failure(Code.DESTINATION, lambda path=path: directories.get(path, create=True))
    assert "moved" in failure(Code.DESTINATION, directories.make, b"a/b/c", 0o755)
    assert directories.get(b"x").fd >= 0
    assert not (tmp_path / "elsewhere" / "new").exists()
    directories.close()
    destination.close()


def test_a_directory_with_the_longest_path_is_looked_for(tmp_path: Path) -> None:
    """It is one byte longer than what the kernel takes at once."""
    destination = Destination(str(tmp_path))
    directories = Directories(destination, Places(destination))
    path = b"/".join([b"d" * 200] * 20)
    path += b"/" + b"e" * (limits.PATH_BYTES - len(path) - 1)
    assert len(path) == limits.PATH_BYTES
    parts = path.split(b"/")
    for depth in range(1, len(parts) + 1):
        directories.make(b"/".join(parts[:depth]), 0o755)
    directories.look_again()
    assert directories.get(path).fd >= 0
    directories.close()
    destination.close()


def test_a_deep_tree_is_not_opened_from_its_top_for_each_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its files come from the bottom up, when what is above them was closed long ago."""
    depth, opened, real = 500, 0, os.open

    def count(*args: object, **kwargs: object) -> int:
        nonlocal opened
        opened += 1
        return real(*args, **kwargs)  # type: ignore[arg-type]

    destination = Destination(str(tmp_path))
    directories = Directories(destination, Places(destination))
    paths = [b"/".join([b"d"] * level) for level in range(1, depth + 1)]
    for path in paths:
        directories.make(path, 0o755)
    monkeypatch.setattr(os, "open", count)
    for path in reversed(paths):
        assert directories.get(path).fd >= 0
    assert opened < 10 * depth
    directories.close()
    destination.close()
