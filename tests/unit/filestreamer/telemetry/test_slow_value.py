"""The free space of a disk that hangs: what is asked on the metrics port is answered all the same."""

import threading
from collections.abc import Callable

import pytest

from filestreamer.telemetry import slow_value
from filestreamer.telemetry.slow_value import SlowValue
from filestreamer.wire.errors import Code, TransferFailed

LONG_SECONDS = 60.0


class Disk:
    """A disk that can hang."""

    def __init__(self) -> None:
        self.free_bytes = 100
        self.answers = threading.Event()
        self.answers.set()
        self.readings = 0

    def read(self) -> int:
        self.readings += 1
        assert self.answers.wait(LONG_SECONDS)
        return self.free_bytes


def test_each_value_is_read_anew() -> None:
    disk = Disk()
    value = SlowValue(disk.read)
    assert value.get() == 100
    disk.free_bytes = 50
    assert value.get() == 50


def test_a_disk_that_hangs_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the last value stands for it, for a while."""
    monkeypatch.setattr(slow_value, "WAIT_SECONDS", LONG_SECONDS)
    disk = Disk()
    value = SlowValue(disk.read)
    assert value.get() == 100
    disk.answers.clear()
    monkeypatch.setattr(slow_value, "WAIT_SECONDS", 0.01)
    assert [value.get() for _ in range(3)] == [100, 100, 100]
    assert disk.readings == 2
    monkeypatch.setattr(slow_value, "KEEP_SECONDS", 0.0)
    assert value.get() is None
    monkeypatch.setattr(slow_value, "WAIT_SECONDS", LONG_SECONDS)
    monkeypatch.setattr(slow_value, "KEEP_SECONDS", LONG_SECONDS)
    disk.free_bytes = 50
    disk.answers.set()
    assert value.get() == 50


def refuse() -> int:
    raise PermissionError


def gone() -> int:
    raise TransferFailed(Code.DESTINATION, "it is gone")


@pytest.mark.parametrize("read", [refuse, gone])
def test_a_value_that_can_t_be_read(read: Callable[[], int]) -> None:
    assert SlowValue(read).get() is None


def test_no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk()

    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    assert SlowValue(disk.read).get() is None
    monkeypatch.undo()
