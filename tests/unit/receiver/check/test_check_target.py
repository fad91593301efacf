"""A dry run, asked by hand."""

import os
from pathlib import Path

import pytest

from filestreamer.process import log
from filestreamer.telemetry.counters import TransferCounters
from filestreamer.wire import limits
from filestreamer.wire import messages as m
from receiver.check.check_target import CheckTarget
from receiver.disk.destination import Destination
from receiver.disk.report import Report


@pytest.mark.parametrize("has_directory", [False, True])
def test_what_would_be_removed_is_told_while_more_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, has_directory: bool
) -> None:
    """A destination may have millions of names that the source has not: they must not all be in memory."""
    monkeypatch.setattr(limits, "VERDICTS_PER_FRAME", 10)
    extra = tmp_path / "top" / ("old" if has_directory else ".")
    extra.mkdir(parents=True)
    for number in range(200):
        (extra / f"{number}").touch()
    removed = [str(path.relative_to(tmp_path)) for path in (tmp_path / "top").rglob("*")]
    counters = TransferCounters(bytes(16), "")
    target = CheckTarget(
        m.Offer(1024, None, False, 0, delete=m.Deletion((b"top",), ()), dry_run=True),
        Destination(str(tmp_path), allow_delete=True),
        None,
        is_in_use=lambda _: False,
        counters=counters,
        report=Report(lambda: None),
        log=log.configure("receiver"),
    )
    top = m.Entry(b"top", m.EntryType.DIRECTORY, 0, 0o755, 1)
    told: list[str] = []
    for message in target.take_part(m.ManifestPart(0, (top,), True), b""):
        assert isinstance(message, m.Verdicts)
        told += [os.fsdecode(each.path) for each in message.entries if each.standing is m.Standing.EXTRA]
        assert counters.verdicts is not None
        assert counters.verdicts.get(m.Standing.EXTRA, 0) - len(told) <= 10, "found, and not told yet"
    target.close(cleanly=True)
    assert sorted(told) == sorted(removed)
