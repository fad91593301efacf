"""`sender --existing` and `receiver --no-replace`: a tree that is partly there goes on with the rest."""

import os
from pathlib import Path
from typing import Any

import pytest

from filestreamer.wire import messages as m
from filestreamer.wire.digests import root_digest
from filestreamer.wire.errors import Code
from tests.support import trees
from tests.support.peer import RawSender, Sample, TreeSample, acknowledged
from tests.support.services import Pair

OLD, NEW = 1_000_000_000_000_000_000, 2_000_000_000_000_000_000


def put(path: Path, content: bytes, mtime_ns: int) -> Path:
    trees.write(path, content)
    os.utime(path, ns=(mtime_ns, mtime_ns))
    return path


@pytest.fixture
def tree(pair: Pair) -> Path:
    """Make a tree of which some entries lie at the destination: older, newer, the same, of other types."""
    tree, there = pair.source / "tree", pair.destination / "tree"
    for name in ("missing", "sub/missing", "large-missing", "older", "newer", "large-older", "same", "empty"):
        content = b"" if name == "empty" else (b"source " + name.encode()) * (3000 if "large" in name else 1)
        put(tree / name, content, (OLD + NEW) // 2)
    (tree / "link").symlink_to("source")
    (tree / "becomes-link").symlink_to("source")
    put(there / "same", (tree / "same").read_bytes(), (OLD + NEW) // 2)
    put(there / "older", b"destination", OLD)
    put(there / "large-older", b"destination" * 5000, OLD)
    put(there / "newer", b"destination", NEW)
    put(there / "empty", b"destination", OLD)
    put(there / "becomes-link", b"destination", NEW)
    (there / "link").symlink_to("destination")
    os.utime(there / "link", ns=(OLD, OLD), follow_symlinks=False)
    put(there / "only-here", b"destination", OLD)
    return tree


DIFFER = {"older", "large-older", "newer", "empty", "becomes-link", "link"}
OLDER = {"older", "large-older", "empty", "link"}


def is_source(path: Path) -> bool:
    """Whether what is there came from the source."""
    if path.is_symlink():
        return os.readlink(path) == "source"
    return not path.read_bytes().startswith(b"destination")


def send(pair: Pair, tree: Path, *args: object, receiver: tuple[object, ...] = ()) -> dict[str, Any]:
    """Send to a receiver of its own; return the sender's result, which agrees with the receiver's."""
    there = pair.receiver("--once", *receiver)
    sender = pair.start("sender", tree, *args, "--chunk-size", "8KiB", "--to", pair.address(there))
    assert sender.wait() == there.wait()
    assert "Traceback" not in sender.stderr + there.stderr
    sent, received = sender.result, there.result
    for key in ("exit_code", "left_files", "skipped_kinds", "bytes", "root_digest"):
        assert sent[key] == received[key], key
    return sent


@pytest.mark.parametrize(
    ("existing", "kept"), [("skip", DIFFER), ("newer", DIFFER - OLDER), ("replace", set()), ("refuse", DIFFER)]
)
def test_a_tree_that_is_partly_there(pair: Pair, tree: Path, existing: str, kept: set[str]) -> None:
    sent = send(pair, tree, "--existing", existing)
    there = pair.destination / "tree"
    assert {name for name in DIFFER if not is_source(there / name)} == kept
    for name in ("missing", "sub/missing", "large-missing"):
        assert (there / name).read_bytes() == (tree / name).read_bytes()
    assert (there / "only-here").exists()
    if existing == "refuse":
        assert (sent["exit_code"], sent["skipped_kinds"], sent["left_files"]) == (5, {"existing": len(kept)}, 0)
    else:
        assert (sent["exit_code"], sent["skipped_kinds"], sent["left_files"]) == (0, {}, len(kept))
    again = send(pair, tree, "--existing", existing)
    assert (again["exit_code"], again["left_files"], again["sent_bytes"]) == (sent["exit_code"], sent["left_files"], 0)


@pytest.mark.parametrize("existing", ["skip", "newer", "replace", "refuse"])
def test_the_receiver_that_replaces_nothing_is_stricter(pair: Pair, tree: Path, existing: str) -> None:
    sent = send(pair, tree, "--existing", existing, receiver=("--no-replace",))
    there = pair.destination / "tree"
    assert {name for name in DIFFER if is_source(there / name)} == set()
    assert (there / "sub" / "missing").exists()
    assert (sent["exit_code"], sent["skipped_kinds"], sent["left_files"]) == (5, {"existing": len(DIFFER)}, 0)


@pytest.mark.parametrize("existing", ["skip", "newer"])
def test_names_of_one_file(pair: Pair, existing: str) -> None:
    """Further names of what was left are left, too; what can't be a name of it is told."""
    tree, there = pair.source / "tree", pair.destination / "tree"
    for group in ("both", "first", "second"):
        put(tree / f"{group}-1", b"source", OLD)
        os.link(tree / f"{group}-1", tree / f"{group}-2")
    for name in ("both-1", "both-2", "first-1", "second-2"):
        put(there / name, b"destination", NEW)
    sent = send(pair, tree, "--existing", existing)
    assert {path.name for path in there.iterdir() if is_source(path)} == {"second-1"}
    assert not (there / "first-2").exists()
    assert (sent["exit_code"], sent["left_files"], sent["skipped_kinds"]) == (5, 4, {"declined": 1})


def test_obstacles_stay_obstacles(pair: Pair, tree: Path) -> None:
    """A directory in the way of a file is nothing that somebody wants left, nor is a file in that of a directory."""
    for name in ("missing", "older"):
        (pair.destination / "tree" / name).unlink(missing_ok=True)
        (pair.destination / "tree" / name).mkdir()
    trees.write(pair.destination / "tree" / "sub", b"destination")
    sent = send(pair, tree, "--existing", "skip")
    assert (sent["exit_code"], sent["skipped_kinds"]) == (5, {"declined": 4})
    assert sent["left_files"] == len(DIFFER) - 1


@pytest.mark.parametrize("existing", ["skip", "newer"])
def test_one_file_is_left(pair: Pair, existing: str) -> None:
    file = put(pair.source / "file", b"source" * 5000, OLD)
    put(pair.destination / "file", b"destination", NEW)
    sent = send(pair, file, "--existing", existing)
    assert (sent["exit_code"], sent["left_files"], sent["sent_bytes"], sent["bytes"]) == (0, 1, 0, 0)
    assert (pair.destination / "file").read_bytes() == b"destination"
    (pair.destination / "file").unlink()
    assert send(pair, file, "--existing", existing)["left_files"] == 0
    assert (pair.destination / "file").read_bytes() == file.read_bytes()


@pytest.mark.parametrize(
    ("existing", "checksum"),
    [("skip", False), ("newer", False), ("refuse", False), ("replace", False), ("refuse", True), ("replace", True)],
)
def test_one_equal_file_is_accepted_in_every_case(pair: Pair, existing: str, checksum: bool) -> None:
    """It does not differ, so nobody is asked what becomes of it; what it lacks but its bytes, it gets."""
    file = put(pair.source / "file", b"source" * 5000, OLD)
    there = put(pair.destination / "file", file.read_bytes(), NEW if checksum else OLD)
    there.chmod(0o600)
    file.chmod(0o640)
    before = there.stat().st_ino
    sent = send(pair, file, "--existing", existing, *(["--checksum"] if checksum else []))
    accepted = sent["held_bytes" if checksum else "unchecked_bytes"]
    assert (sent["exit_code"], sent["left_files"], sent["sent_bytes"], accepted) == (0, 0, 0, file.stat().st_size)
    status = there.stat()
    assert (status.st_ino, status.st_mode & 0o777, status.st_mtime_ns) == (before, 0o640, OLD)


@pytest.mark.parametrize(("existing", "exit_code"), [("skip", 0), ("newer", 0), ("refuse", 3), ("replace", 0)])
def test_one_file_that_a_comparison_finds_to_differ(pair: Pair, existing: str, exit_code: int) -> None:
    """Of equal size: whether it differs shows only when it is compared."""
    file = put(pair.source / "file", b"source" * 5000, OLD)
    there = put(pair.destination / "file", b"differ" * 5000, NEW)
    receiver = pair.receiver()
    sender = pair.sender(file, pair.address(receiver), "--existing", existing, "--checksum", "--chunk-size", "8KiB")
    assert sender.wait() == exit_code, sender.stderr
    assert there.read_bytes()[:6] == (b"source" if existing == "replace" else b"differ")
    assert pair.received() == ["file"]
    if existing == "refuse":
        assert "--existing refuse" in sender.result["error"]["message"]
    else:
        assert sender.result["left_files"] == (existing != "replace")


def test_one_newer_file_is_replaced(pair: Pair) -> None:
    file = put(pair.source / "file", b"source", NEW)
    put(pair.destination / "file", b"destination", OLD)
    assert send(pair, file, "--existing", "newer")["left_files"] == 0
    assert (pair.destination / "file").read_bytes() == b"source"


def test_one_file_is_refused(pair: Pair) -> None:
    file = put(pair.source / "file", b"source", NEW)
    put(pair.destination / "file", b"destination", OLD)
    receiver = pair.receiver()
    for args in ((file,), ("-", "--as", "file")):
        sender = pair.start("sender", *args, "--existing", "refuse", "--to", pair.address(receiver))
        assert "--existing refuse" in sender.fails(3, "exists", status="refused")
    assert (pair.destination / "file").read_bytes() == b"destination"


@pytest.mark.parametrize(
    ("existing", "outcome"),
    [
        (m.Existing.SKIP, m.Complete(True, left=1)),
        (m.Existing.NEWER, m.Complete(True, left=1)),
        (m.Existing.REFUSE, Code.EXISTS),
        (m.Existing.REPLACE, m.Complete(True)),
    ],
)
def test_a_name_that_is_taken_while_its_bytes_come(
    pair: Pair, existing: m.Existing, outcome: m.Complete | Code
) -> None:
    sample = Sample.random(1, 100, 1000)
    receiver = pair.receiver()
    with RawSender(pair.address(receiver)) as peer:
        control = peer.control()
        control.send(sample.offer._replace(existing=existing), m.ManifestPart(0, (sample.entry,), True))
        control.expect(m.Needed)
        data = peer.data()
        data.send_raw(sample.chunk(0))
        assert isinstance(data.read(), m.ChunkAck)
        taken = put(pair.destination / os.fsdecode(sample.name), b"destination", 4_000_000_000_000_000_000)
        control.send(sample.finish)
        answer = control.expect(tuple)
        assert (answer if isinstance(answer, m.Complete) else getattr(answer, "code", None)) == outcome
        control.end_writing()
        control.ends()
    is_replaced = existing is m.Existing.REPLACE
    assert taken.read_bytes() == (sample.content if is_replaced else b"destination")
    if existing is not m.Existing.REFUSE:  # nothing is left to be resumed
        assert pair.received() == [taken.name]


@pytest.mark.parametrize("existing", [m.Existing.SKIP, m.Existing.NEWER, m.Existing.REFUSE])
def test_names_in_a_tree_that_are_taken_while_bytes_come(pair: Pair, existing: m.Existing) -> None:
    """A small file and a large one: another process makes newer ones before they are put in place."""
    sample = TreeSample(1000)
    sample.directory(b"d")
    sample.add(b"d/small", b"source" * 10)
    sample.add(b"d/large", b"source" * 1000)
    receiver = pair.receiver()
    with RawSender(pair.address(receiver)) as peer:
        control = peer.control()
        control.send(sample.offer._replace(existing=existing), *sample.parts)
        control.expect(m.Needed)
        data = peer.data()
        for name in ("small", "large"):
            put(pair.destination / "d" / name, b"destination", NEW * 2)
        for chunk_id, segments in sample.chunks().items():
            data.send_raw(sample.chunk(chunk_id, segments))
        acknowledged(data, len(sample.chunks()))
        control.send(sample.finish)
        told = [control.read()]
        while not isinstance(told[-1], m.Complete):
            told.append(control.read())
    for name in ("small", "large"):
        assert (pair.destination / "d" / name).read_bytes() == b"destination"
    declined = [entry.kind for message in told if isinstance(message, m.Declined) for entry in message.entries]
    if existing is m.Existing.REFUSE:
        assert (declined, told[-1]) == ([m.SkipKind.EXISTING] * 2, m.Complete(True))
    else:
        assert (declined, told[-1]) == ([], m.Complete(True, left=2))


def test_a_chunk_of_a_file_that_is_left_is_refused(pair: Pair) -> None:
    sample = Sample.random(1, 100, 1000)
    put(pair.destination / os.fsdecode(sample.name), b"destination", OLD)
    receiver = pair.receiver()
    with RawSender(pair.address(receiver)) as peer:
        control = peer.control()
        control.send(sample.offer._replace(existing=m.Existing.SKIP), m.ManifestPart(0, (sample.entry,), True))
        assert control.expect(m.Held) == m.Held(0, 0, b"", (), False, (m.FileRange(0, 1),))
        data = peer.data()
        data.send_raw(sample.chunk(0))
        (abort,) = data.rest()
        assert isinstance(abort, m.Abort)
        assert abort.code is Code.PROTOCOL


def test_a_left_file_has_no_digest(pair: Pair) -> None:
    sample = Sample.random(1, 100, 1000)
    put(pair.destination / os.fsdecode(sample.name), b"destination", OLD)
    receiver = pair.receiver()
    with RawSender(pair.address(receiver)) as peer:
        control = peer.control()
        control.send(sample.offer._replace(existing=m.Existing.SKIP), m.ManifestPart(0, (sample.entry,), True))
        control.expect(m.Held)
        control.send(sample.finish)
        assert control.rest()[-1].code is Code.DIGEST  # type: ignore[union-attr]
    with RawSender(pair.address(receiver)) as peer:
        control = peer.control()
        control.send(sample.offer._replace(existing=m.Existing.SKIP), m.ManifestPart(0, (sample.entry,), True))
        control.expect(m.Held)
        control.send(m.Finish(1, root_digest([])))
        assert control.expect(m.Complete) == m.Complete(True, left=1)


@pytest.mark.parametrize(
    "offer",
    [
        m.Offer(8, m.Shard(0, 2), False, 8, m.Existing.SKIP),
        m.Offer(8, m.Shard(0, 2), False, 8, delete=m.Deletion((b"",))),
        m.Offer(8, m.Shard(0, 2), False, 8, dry_run=True),
    ],
)
def test_a_shard_has_no_say(pair: Pair, offer: m.Offer) -> None:
    receiver = pair.receiver("--allow-delete")
    with RawSender(pair.address(receiver)) as peer:
        entry = m.Entry(b"f", m.EntryType.FILE, 8, 0o644, 0)
        abort = peer.offers(offer, m.ManifestPart(0, (entry,), True))
        assert abort.code is Code.PROTOCOL


@pytest.mark.parametrize("is_tree", [True, False])
@pytest.mark.parametrize("existing", ["skip", "newer", "refuse"])
def test_bytes_that_are_compared_and_differ(pair: Pair, existing: str, *, is_tree: bool) -> None:
    """With --checksum: nothing is sent in vain of what is left, and what may not be replaced stays."""
    for name in ("equal", "differs"):
        put(pair.source / "tree" / name, name.encode() * 5000, OLD)
        put(pair.destination / ("tree" if is_tree else "") / name, b"equal" * 5000, NEW)
    put(pair.destination / ("tree" if is_tree else "") / "differs", b"DIFFERS" * 5000, NEW)
    paths = [pair.source / "tree"] if is_tree else [pair.source / "tree" / name for name in ("equal", "differs")]
    results = []
    for path in paths:
        there = pair.receiver("--once")
        sender = pair.start(
            "sender", path, "--checksum", "--existing", existing, "--chunk-size", "8KiB", "--to", pair.address(there)
        )
        sender.wait()
        results.append(sender.result)
    there_now = (pair.destination / ("tree/differs" if is_tree else "differs")).read_bytes()
    assert there_now == b"DIFFERS" * 5000
    codes = [result["exit_code"] for result in results]
    if existing == "refuse":
        assert codes == ([5] if is_tree else [0, 3])
    else:
        assert set(codes) == {0}
        assert sum(result["left_files"] for result in results) == 2
        assert sum(result["sent_bytes"] for result in results) == 0
