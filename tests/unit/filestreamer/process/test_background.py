"""Jobs in the background, and writes to descriptors that do not block."""

import contextlib
import fcntl
import os
import threading

import pytest

from filestreamer.process.background import Background, is_writable, write_some
from tests.support.services import HANG
from tests.support.waiting import until


def test_a_job_that_fails_ends_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[type[BaseException]] = []
    monkeypatch.setattr(threading, "excepthook", lambda failure: told.append(failure.exc_type))
    background = Background("test", lambda: True)
    done: list[float] = []
    background.add(lambda: done.append(1 / 0), 1)
    until(lambda: told == [ZeroDivisionError], "the job is done")
    background.add(lambda: done.append(1), 1)
    assert background.drain(HANG)
    assert done == [1]


def test_writes_of_a_pipe_that_does_not_block_wait_for_room(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, bytes(4096))
    assert not is_writable(writer)
    with pytest.raises(BlockingIOError):
        write_some(writer, memoryview(b"x"), waits=False)
    reading = threading.Timer(0.05, os.read, (reader, 1 << 16))
    reading.start()
    assert write_some(writer, memoryview(b"x")) == 1
    reading.join()
    assert fcntl.fcntl(writer, fcntl.F_GETFL) & os.O_NONBLOCK
