"""A dry run, asked by hand."""

import itertools
import os
import tracemalloc
from collections.abc import Iterable
from pathlib import Path

import pytest

from filestreamer.process import log
from filestreamer.telemetry.counters import TransferCounters
from filestreamer.wire import limits
from filestreamer.wire import messages as m
from filestreamer.wire.errors import Code, TransferFailed
from receiver.check.check_target import OWN_BYTES, CheckTarget
from receiver.check.judge import GROUPS_MOST
from receiver.disk.destination import Destination
from receiver.disk.report import Report
from receiver.memory.budget import Budget
from receiver.server.admission import TRANSFER_BYTES


def target_in(
    path: Path, counters: TransferCounters, roots: tuple[bytes, ...] = (), budget_bytes: int = 1 << 30
) -> CheckTarget:
    """Make a dry run, with --delete for these roots if there are any."""
    delete = m.Deletion(roots, ()) if roots else None
    return CheckTarget(
        m.Offer(1024, None, False, 0, delete=delete, dry_run=True),
        Destination(str(path), allow_delete=True),
        None,
        is_in_use=lambda _: False,
        account=Budget(budget_bytes).admit("a peer", 0),
        counters=counters,
        report=Report(lambda: None),
        log=log.configure("receiver"),
    )


def used_bytes(target: CheckTarget, entries: Iterable[m.Entry]) -> int:
    """Offer entries that are made one by one, each in a part of its own; return how much memory that takes after it."""
    tracemalloc.start()
    try:
        for file_id, entry in enumerate(entries):
            list(target.take_part(m.ManifestPart(file_id, (entry,), False), b""))
        return tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()


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
    target = target_in(tmp_path, counters, (b"top",))
    top = m.Entry(b"top", m.EntryType.DIRECTORY, 0, 0o755, 1)
    told: list[str] = []
    for message in target.take_part(m.ManifestPart(0, (top,), True), b""):
        assert isinstance(message, m.Verdicts)
        told += [os.fsdecode(each.path) for each in message.entries if each.standing is m.Standing.EXTRA]
        assert counters.verdicts is not None
        assert counters.verdicts.get(m.Standing.EXTRA, 0) - len(told) <= 10, "found, and not told yet"
    target.close(cleanly=True)
    assert sorted(told) == sorted(removed)


def test_directories_in_each_other_take_no_more_than_is_reserved(tmp_path: Path) -> None:
    paths = (b"r" + b"/d" * depth for depth in range(600))
    nested = (
        entry
        for path in paths
        for entry in (
            m.Entry(path, m.EntryType.DIRECTORY, 0, 0o755, 1),
            m.Entry(path + b"/f", m.EntryType.KEPT, 0, 0o644, 1),
        )
    )
    assert used_bytes(target_in(tmp_path, TransferCounters(bytes(16), ""), (b"r",)), nested) < TRANSFER_BYTES


def test_files_with_several_names_take_no_more_than_is_reserved(tmp_path: Path) -> None:
    """However long their first names are, which are compared with the others."""
    above = b"/".join([b"d" * 250] * 15)
    linked = (
        m.Entry(above + b"/%d" % group, m.EntryType.FILE, 1, 0o644, 1, hard_link_group=group)
        for group in range(1, 1500)
    )
    assert used_bytes(target_in(tmp_path, TransferCounters(bytes(16), "")), linked) < TRANSFER_BYTES


def test_files_with_several_names_that_are_there_leave_what_is_for_the_names_of_directories(tmp_path: Path) -> None:
    names = [b"%d" % group for group in range(1, GROUPS_MOST + 1)]
    for name in names:
        (tmp_path / os.fsdecode(name)).touch()
    linked = (m.Entry(name, m.EntryType.FILE, 1, 0o644, 1, hard_link_group=int(name)) for name in names)
    assert used_bytes(target_in(tmp_path, TransferCounters(bytes(16), "")), linked) < TRANSFER_BYTES - OWN_BYTES


def test_the_names_of_a_dry_run_come_out_of_the_budget(tmp_path: Path) -> None:
    target = target_in(tmp_path, TransferCounters(bytes(16), ""), (b"",), budget_bytes=1)
    step = limits.ENTRIES_PER_PART
    parts = (
        m.ManifestPart(
            first,
            tuple(m.Entry(b"%d" % name, m.EntryType.FILE, 1, 0o644, 1) for name in range(first, first + step)),
            False,
        )
        for first in range(0, 1 << 16, step)
    )
    with pytest.raises(TransferFailed) as caught:
        list(itertools.chain.from_iterable(target.take_part(part, b"") for part in parts))
    assert caught.value.code is Code.LIMIT
