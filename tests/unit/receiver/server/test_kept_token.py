"""The token that a receiver keeps in its directory, where others of the machine lay traps: never theirs or shown."""

import contextlib
import os
import stat
import threading
from pathlib import Path

import pytest

from filestreamer.wire.errors import FilestreamerError
from receiver.disk.destination import Destination
from receiver.server import token as receiver_token
from receiver.settings import parse as parse_receiver
from tests.support.services import HANG


class Quiet:
    """A log that says nothing."""

    def warning(self, *_: object, **__: object) -> None:
        """Say nothing."""


def kept_token(directory: Path) -> str | None:
    """Ask for the token that a receiver on an address beyond this machine would use: no socket is needed for it."""
    settings, _ = parse_receiver(["--directory", str(directory)], {})
    return receiver_token.choose(settings, Destination(str(directory)), ["192.0.2.1"], Quiet()).token


def test_the_token_is_no_fifo(tmp_path: Path) -> None:
    """Opening one to read waits for who writes: the receiver must not hang before it listens."""
    staging = tmp_path / ".filestreamer"
    staging.mkdir(mode=0o700)
    os.mkfifo(staging / "token")
    chosen: list[str | None] = []

    def choose() -> None:
        with contextlib.suppress(FilestreamerError):
            chosen.append(kept_token(tmp_path))

    thread = threading.Thread(target=choose, daemon=True)
    thread.start()
    thread.join(HANG)
    hangs = thread.is_alive()
    if hangs:  # let it go, whatever it reads
        os.close(os.open(staging / "token", os.O_WRONLY | os.O_NONBLOCK))
        thread.join(HANG)
    assert not hangs


@pytest.mark.parametrize("mode", [0o644, 0o660, 0o602], ids=oct)
def test_a_token_that_others_can_read_or_set(tmp_path: Path, mode: int) -> None:
    """Who could read it knows it, who could write it chose it: another one is made, or it is refused."""
    known = "a token that everybody knows"
    staging = tmp_path / ".filestreamer"
    staging.mkdir(mode=0o700)
    (staging / "token").write_text(known + "\n")
    (staging / "token").chmod(mode)
    with contextlib.suppress(FilestreamerError):
        assert kept_token(tmp_path) != known


def test_a_staging_directory_that_others_may_write(tmp_path: Path) -> None:
    """Others can't put anything there any more."""
    staging = tmp_path / ".filestreamer"
    staging.mkdir()
    staging.chmod(0o777)
    kept_token(tmp_path)
    assert oct(stat.S_IMODE(staging.stat().st_mode)) == "0o700"


@pytest.mark.parametrize("whose", [".filestreamer", ".filestreamer/token"])
def test_a_token_of_somebody_else(tmp_path: Path, whose: str) -> None:
    """In a directory that many may write, another user may be first to make it: then the token is theirs."""
    if os.geteuid() != 0:
        pytest.skip("only root can make what belongs to somebody else")
    known = "a token that somebody else made"
    staging = tmp_path / ".filestreamer"
    staging.mkdir(mode=0o700)
    (staging / "token").write_text(known + "\n")
    (staging / "token").chmod(0o600)
    os.chown(tmp_path / whose, 65534, 65534)
    with contextlib.suppress(FilestreamerError):
        assert kept_token(tmp_path) != known
