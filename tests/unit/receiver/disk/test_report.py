"""What is reported of single entries: told once, in order, within the limits of a frame, and again on request."""

import os
import tracemalloc
from pathlib import Path

from filestreamer.telemetry.counters import WARNINGS_MAX
from filestreamer.wire import limits
from filestreamer.wire import messages as m
from filestreamer.wire.codec import decode, encode
from filestreamer.wire.messages import SkipKind
from receiver.disk.report import Report
from receiver.tree.manifest.spool import Spool as DiskSpool


class Spool:
    """Keeps bytes in memory."""

    def __init__(self) -> None:
        self.content = bytearray()

    def append(self, data: bytes | bytearray) -> int:
        """Add bytes; return their offset."""
        self.content += data
        return len(self.content) - len(data)

    def read(self, at: int, count: int) -> bytes:
        """Read bytes that were added."""
        return bytes(self.content[at : at + count])


def entries(messages: list[m.Declined | m.Notice]) -> list[m.DeclinedEntry]:
    return [entry for message in messages if isinstance(message, m.Declined) for entry in message.entries]


def test_each_report_is_told_once() -> None:
    nudged: list[None] = []
    report = Report(lambda: nudged.append(None))
    assert report.is_empty
    report.decline(3, b"a/b", "it is a directory")
    report.skip_attribute(4, b"c", "its owner can't be set")
    report.leave_existing(9, b"d", "it exists")
    report.warn("copies")
    report.warn("copies")
    assert len(nudged) == 4
    assert list(report.messages()) == [
        m.Notice(("copies",)),
        m.Declined(
            (
                m.DeclinedEntry(3, SkipKind.DECLINED, "it is a directory", b"a/b"),
                m.DeclinedEntry(4, SkipKind.ATTRIBUTE, "its owner can't be set", b"c"),
                m.DeclinedEntry(9, SkipKind.EXISTING, "it exists", b"d"),
            )
        ),
    ]
    assert report.is_empty
    assert list(report.messages()) == []


def test_what_was_told_is_told_again_in_order() -> None:
    """But not what is still to be told: it comes after that."""
    for spool in (None, Spool()):
        report = Report(lambda: None)
        report.store = spool
        for number in range(3):
            report.decline(number, b"%d" % number, "no")
            report.warn(f"warning {number}")
            list(report.messages())
        report.decline(7, b"7", "no")
        report.warn("the last")
        again = list(report.again())
        assert [entry.file_id for entry in entries(again)] == [0, 1, 2]
        assert again[0] == m.Notice(("warning 0", "warning 1", "warning 2"))
        assert [entry.file_id for entry in entries(list(report.messages()))] == [7]
        assert [entry.file_id for entry in entries(list(report.again()))] == [0, 1, 2, 7]
        assert (spool is None) == bool(report._kept)


def test_what_a_sender_does_not_read_takes_no_memory(tmp_path: Path) -> None:
    """A sender may read no more after Finish, while any number of hard links and directories is declined."""
    directory_fd = os.open(tmp_path, os.O_RDONLY)
    spool = DiskSpool(directory_fd, "here")
    os.close(directory_fd)
    report = Report(lambda: None)
    report.store = spool
    count = 20_000
    tracemalloc.start()
    try:
        for number in range(count):
            report.decline(number, b"%d/" % number + b"d" * 1000, f"{number} is a directory")
        used_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert used_bytes < 1 << 20
    assert report.untold(lambda kind: kind is SkipKind.DECLINED) == count
    assert list(report.again()) == []
    told = list(report.messages())
    assert [(entry.file_id, entry.reason) for entry in entries(told)] == [
        (number, f"{number} is a directory") for number in range(count)
    ]
    assert report.untold(lambda _: True) == 0
    assert report.is_empty
    assert list(report.again()) == told
    spool.close()


def test_a_message_fits_a_frame_however_long_paths_and_reasons_are() -> None:
    report = Report(lambda: None)
    count = 3 * limits.ENTRIES_PER_DECLINED
    for number in range(count):
        report.decline((1 << 62) + number, b"\xff" * 4000, "ä" * 3000)
        report.decline(number, b"short", "")
    messages = list(report.messages())
    assert len(entries(messages)) == 2 * count
    assert all(decode(encode(message)) == message for message in messages)
    assert len(messages) < 20


def test_warnings_are_bounded() -> None:
    report = Report(lambda: None)
    for number in range(1000):
        report.warn(str(number))
    assert sum(len(message.texts) for message in report.messages() if isinstance(message, m.Notice)) == WARNINGS_MAX
