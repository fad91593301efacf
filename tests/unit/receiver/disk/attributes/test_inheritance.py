"""Files that are made in their final directory, to have what it hands down."""

import os
from pathlib import Path
from typing import NoReturn

import pytest

from receiver.disk.attributes.inheritance import create_like
from receiver.disk.paths import staging_key


class Killed(BaseException):
    """The process ends here, and cleans nothing up."""


def test_a_killed_process_leaves_a_name_that_the_next_one_removes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a file system where every file has a name."""

    def rename(*_: object, **__: object) -> NoReturn:
        raise Killed

    monkeypatch.setattr(os, "O_TMPFILE", os.O_DIRECTORY)  # what a file system does that has none
    for name in ("final", "staging"):
        (tmp_path / name).mkdir()
    final, staging = (os.open(tmp_path / name, os.O_RDONLY) for name in ("final", "staging"))
    with monkeypatch.context() as killing:
        killing.setattr(os, "rename", rename)
        with pytest.raises(Killed):
            create_like(final, staging, "1", staging_key(b"t/f"))
    assert len(os.listdir(tmp_path / "final")) == 1
    made = create_like(final, staging, "2", staging_key(b"t/f"))
    assert made is not None
    for fd in (made, final, staging):
        os.close(fd)
    assert (os.listdir(tmp_path / "final"), os.listdir(tmp_path / "staging")) == ([], ["2"])
