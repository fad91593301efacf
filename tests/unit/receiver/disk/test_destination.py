"""The destination directory: which one is refused, and what is made in it."""

import os
from pathlib import Path

from filestreamer.wire.errors import Code
from receiver.disk.destination import Destination
from tests.support.staged_file import failure, stage, write


def test_destinations_that_are_none(path: Path) -> None:
    (path / "file").write_bytes(b"")
    assert failure(Code.DESTINATION, Destination, str(path / "missing")).endswith("No such file or directory")
    assert failure(Code.DESTINATION, Destination, str(path / "file")).endswith("Not a directory")


def test_nothing_is_made_before_it_is_needed(path: Path, destination: Destination) -> None:
    assert destination.free_bytes() > 0
    assert os.listdir(path) == []


def test_tidy_keeps_what_is_not_empty(path: Path, destination: Destination) -> None:
    staged = stage(destination)
    write(staged, 0)
    staged.close()
    destination.tidy()
    assert os.listdir(path) == [".filestreamer"]
