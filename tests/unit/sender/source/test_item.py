"""A file that the user names: what is refused at once."""

import os
from pathlib import Path

import pytest

from filestreamer.wire.errors import Code, TransferFailed
from sender.source.item import check_readable


def refused(path: Path) -> str:
    """Return why a file can't be sent."""
    with pytest.raises(TransferFailed) as caught:
        check_readable(os.fsencode(path))
    assert caught.value.code is Code.SOURCE
    return str(caught.value)


def test_missing(tmp_path: Path) -> None:
    path = tmp_path / "missing"
    assert refused(path) == f"can't read {path}: No such file or directory"


def test_a_fifo_is_refused_without_waiting_for_a_writer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    assert "not a regular file" in refused(tmp_path / "fifo")
