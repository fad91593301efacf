"""Everything but a few entries arrives: both sides say which, by kind, and exit with 5, unless that is tolerated."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from filestreamer.wire import limits
from filestreamer.wire import messages as m
from tests.integration.test_trees import unprivileged
from tests.support import sending, trees
from tests.support.peer import RawSender, Sample, ack
from tests.support.services import Pair, Service


@pytest.fixture
def tree(pair: Pair) -> Path:
    """Return a tree of files, of which some are going to be a trouble, and a FIFO."""
    tree = trees.many(pair.source / "tree", 20)
    for name in ("gone", "changes", "secret"):
        trees.write(tree / "x" / name, name.encode())
    os.mkfifo(tree / "x" / "fifo")
    return tree


def send_with_trouble(monkeypatch: pytest.MonkeyPatch, tree: Path, address: str, *args: object) -> Any:
    """Send in this process; a file vanishes right after it was listed, one changes whenever it is read.

    Return the transfer.
    """

    def change(path: bytes) -> None:
        if path == b"/x/changes":
            with (tree / "x" / "changes").open("ab") as file:
                file.write(b"more")

    gone = tree / "x" / "gone"
    with sending.once_listed(monkeypatch, gone.unlink), sending.before_reads(monkeypatch, os.fsencode(tree), change):
        return sending.send(tree, "--to", address, "--chunk-size", "8KiB", *args)


def entries(result: dict[str, Any]) -> set[tuple[str, str]]:
    return {(entry["path"], entry["kind"]) for entry in result["skipped"]}


TOLD = {("tree/x/gone", "vanished"), ("tree/x/changes", "changed"), ("tree/x/fifo", "special")}
KINDS = {"vanished": 1, "changed": 1, "special": 1}


def test_both_sides_say_what_vanished_and_what_changed(pair: Pair, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    receiver = pair.receiver("--once")
    expected = trees.look(tree)
    transfer = send_with_trouble(monkeypatch, tree, pair.address(receiver))
    received = receiver.falls_short()
    assert entries(received) == TOLD
    assert received["skipped_kinds"] == KINDS
    assert {kind.name.lower(): count for kind, count in transfer.counters.skipped_kinds.items()} == KINDS
    error = transfer.counters.shortfall()
    assert (error.exit_code, error.name) == (5, "partial")
    assert "tree/x/gone" in received["error"]["message"] or "tree/x/changes" in received["error"]["message"]
    assert receiver.events("transfer_failed")[0]["skipped_kinds"] == KINDS
    left_out = (b"x/changes", b"x/gone", b"x/fifo")
    assert trees.compare(expected, trees.look(pair.destination / "tree"), *left_out) == []


@pytest.mark.parametrize("how", ["--tolerate=vanished,changed", "--tolerate=vanished --tolerate=changed", "variable"])
def test_what_is_tolerated_is_told_all_the_same(
    pair: Pair, tree: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    args, env = (how.split(), {}) if how != "variable" else ([], {"FILESTREAMER_TOLERATE": "changed\nvanished"})
    receiver = pair.receiver("--once", *args, env=env)
    transfer = send_with_trouble(monkeypatch, tree, pair.address(receiver), "--tolerate", "changed,vanished")
    received = receiver.succeeds()
    assert transfer.counters.shortfall() is None
    assert entries(received) == TOLD
    assert (received["skipped_kinds"], received["skipped_files"]) == (KINDS, 3)


def test_each_side_tolerates_for_itself(pair: Pair, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    receiver = pair.receiver("--once", "--tolerate", "vanished")
    transfer = send_with_trouble(monkeypatch, tree, pair.address(receiver), "--tolerate", "changed,vanished,unreadable")
    assert transfer.counters.shortfall() is None
    assert "1 changed" in receiver.falls_short()["error"]["message"]


def test_special_files_are_no_failure(pair: Pair, tree: Path) -> None:
    receiver = pair.receiver("--once")
    sent = pair.sender(tree, pair.address(receiver)).succeeds()
    received = receiver.succeeds()
    assert sent["skipped_kinds"] == received["skipped_kinds"] == {"special": 1}
    assert entries(received) == {("tree/x/fifo", "special")}


def test_a_file_of_too_many_chunks_costs_nothing_but_itself(pair: Pair, tree: Path) -> None:
    with (tree / "x" / "huge").open("wb") as file:
        file.truncate(limits.CHUNKS_PER_FILE + 1)
    expected = trees.look(tree)
    receiver = pair.receiver("--once")
    sent = pair.sender(tree, pair.address(receiver), "--chunk-size", 1).falls_short()
    received = receiver.falls_short()
    assert sent["skipped_kinds"] == received["skipped_kinds"] == {"special": 1, "unreadable": 1}
    (reason,) = [entry["reason"] for entry in received["skipped"] if entry["path"] == "tree/x/huge"]
    assert "use at least 2" in reason
    assert trees.compare(expected, trees.look(pair.destination / "tree"), b"x/fifo", b"x/huge") == []


@contextmanager
def unreadable(*paths: Path) -> Iterator[None]:
    for path in paths:
        path.chmod(0)
    try:
        yield
    finally:
        for path in paths:
            path.chmod(0o755)


def start(pair: Pair, tree: Path | str, *args: object) -> Service:
    return pair.start("sender", tree, *args, under=unprivileged())


@pytest.mark.parametrize("end", ["", "/"])
def test_nothing_could_be_read(pair: Pair, end: str) -> None:
    """An empty list of what was moved is everything but what was skipped, too."""
    top = pair.source / "top"
    files = [trees.write(top / name, b"x") for name in ("a", "b")]
    receiver = pair.receiver("--once")
    with unreadable(*files):
        sent = start(pair, f"{top}{end}", "--to", pair.address(receiver)).falls_short()
    assert sent["skipped_kinds"] == receiver.falls_short()["skipped_kinds"] == {"unreadable": 2}


def test_one_file_is_all_or_nothing(pair: Pair) -> None:
    file = trees.write(pair.source / "file", b"x")
    with unreadable(file):
        start(pair, file, "--to", "127.0.0.1:1", "--tolerate", "unreadable").fails(4, "source")


def test_one_file_arrives_and_others_do_not(pair: Pair) -> None:
    """What is left is one file in the destination itself, which the protocol calls no tree."""
    top = pair.source / "top"
    trees.write(top / "open", b"open")
    closed = trees.write(top / "closed", b"x")
    receiver = pair.receiver("--once")
    with unreadable(closed):
        start(pair, f"{top}/", "--exclude", "nothing", "--to", pair.address(receiver)).falls_short()
    assert entries(receiver.falls_short()) == {("closed", "unreadable")}
    assert (pair.destination / "open").read_bytes() == b"open"


def test_a_receiver_that_serves_on_reports_it_and_stays(pair: Pair, tree: Path) -> None:
    receiver = pair.receiver()
    with unreadable(tree / "x" / "secret"):
        start(pair, tree, "--to", pair.address(receiver)).falls_short()
    receiver.wait_for_results(1)
    start(pair, tree, "--to", pair.address(receiver)).succeeds()
    first, second = receiver.wait_for_results(2)
    assert (first["status"], first["exit_code"], first["committed"]) == ("failed", 5, True)
    assert (second["status"], second["exit_code"], second["skipped_kinds"]) == ("complete", 0, {"special": 1})
    assert receiver.poll() is None


def test_dry_run(pair: Pair, tree: Path) -> None:
    """It logs what it skips as a transfer does: as an error where that is a failure, else as a warning."""

    def skipped(exit_code: int, *args: object) -> list[tuple[str, str, str]]:
        sender = start(pair, tree, "--dry-run", *args)
        assert sender.wait() == exit_code
        return [(line["path"], line["kind"], line["level"]) for line in sender.events("entry_skipped")]

    with unreadable(tree / "x"):
        assert skipped(5) == [(str(tree / "x"), "unreadable", "error")]
        assert skipped(0, "--tolerate", "unreadable") == [(str(tree / "x"), "unreadable", "warning")]


def test_what_a_peer_says_that_it_left_out_is_printable_and_changes_nothing_else(pair: Pair) -> None:
    sample = Sample.random(1, 100, 1000)
    evil = m.LeftOut(b"../\x1b[2J\xff\n{}", m.SkipKind.UNREADABLE, "no\x1b[2J\nnews")
    counts = (m.LeftOutCount(m.SkipKind.UNREADABLE, 1 << 40), m.LeftOutCount(m.SkipKind.VANISHED, 1))
    receiver = pair.receiver("--once")
    with RawSender(pair.address(receiver)) as peer:
        control = peer.offer(sample)
        control.expect(m.Needed)
        data = peer.data()
        data.send_raw(sample.chunk(0))
        ack(data)
        control.send(sample.finish._replace(left_out_counts=counts, left_out=(evil,)))
        assert control.expect(m.Complete).committed
    result = receiver.falls_short()
    (entry,) = result["skipped"]
    assert entry["path"].isprintable()
    assert entry["reason"].isprintable()
    assert result["error"]["message"].isprintable()
    assert result["skipped_kinds"] == {"vanished": 1, "unreadable": 1 << 40}
    assert "\x1b" not in receiver.stderr
    assert pair.received() == ["sample.bin"]


@pytest.mark.parametrize("words", ["gone", "special", "", "vanished,", "vanished;changed"])
@pytest.mark.parametrize("service", ["sender", "receiver"])
def test_no_kind(pair: Pair, tree: Path, service: str, words: str) -> None:
    args = (tree, "--to", "127.0.0.1:1") if service == "sender" else ("--listen", "127.0.0.1:0")
    message = pair.start(service, *args, f"--tolerate={words}").fails(2, "usage")
    assert "--tolerate" in message
    assert "vanished" in message or not words
