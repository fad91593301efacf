"""Directories below the destination: none of them is staging, whatever name leads to it."""

import os
import subprocess
from pathlib import Path

import pytest

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
