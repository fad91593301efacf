"""What a sender makes of entries that the receiver declines, and of warnings."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from filestreamer.wire import messages as m
from filestreamer.wire.digests import root_digest, segment_digest
from filestreamer.wire.errors import Code
from filestreamer.wire.messages import SkipKind
from tests.support import trees
from tests.support.peer import Ended, Link, RawReceiver, read_chunk
from tests.support.services import Pair


@pytest.fixture
def receiver() -> Iterator[RawReceiver]:
    with RawReceiver() as raw:
        yield raw


@pytest.fixture
def tree(pair: Pair) -> Path:
    """Return a tree of a directory and three files."""
    for name in "abc":
        trees.write(pair.source / "tree" / name, name.encode())
    return pair.source / "tree"


def offered(receiver: RawReceiver) -> tuple[Link, dict[str, int]]:
    """Let control in; return it, and the file_ids of what is offered."""
    control, _ = receiver.welcome(m.Role.CONTROL)
    control.expect(m.Offer)
    part = control.expect(m.ManifestPart)
    return control, {entry.path.decode(): part.first_file_id + at for at, entry in enumerate(part.entries)}


def declined(file_id: int, path: str, kind: SkipKind = SkipKind.DECLINED) -> m.Declined:
    return m.Declined((m.DeclinedEntry(file_id, kind, "it is in the way", path.encode()),))


def take_chunk(receiver: RawReceiver, *contents: bytes) -> bytes:
    """Take the one chunk; return the digest that Finish has to have."""
    is_taken = False
    while not is_taken:
        with contextlib.suppress(Ended):  # a connection that was opened before control was lost may be gone
            data, _ = receiver.welcome(m.Role.DATA)
            chunk = read_chunk(data)
            assert chunk.payload == b"".join(contents)
            data.send(m.ChunkAck(m.Verdict.OK, (chunk.chunk_id,)))
            is_taken = True
    return root_digest(map(segment_digest, contents))


def test_a_declined_file_is_withdrawn_and_told(pair: Pair, receiver: RawReceiver, tree: Path) -> None:
    """So is a directory, without being withdrawn; after Finish, entries are only told."""
    sender = pair.sender(tree, receiver.address)
    control, ids = offered(receiver)
    others = [m.FileRange(ids[f"tree/{name}"], 1) for name in "ac"]
    control.send(declined(ids["tree/b"], "tree/b"), m.Needed(tuple(others), ()), m.Notice(("copies", "copies")))
    assert control.expect(m.Withdrawn).file_ids == (ids["tree/b"],)
    digest, said = take_chunk(receiver, b"a", b"c"), control.finish()
    assert said.root_digest == digest
    assert said.left_out_counts == ()  # its own count, a receiver knows
    control.send(declined(ids["tree/c"], "tree/c"), declined(ids["tree"], "tree", SkipKind.ATTRIBUTE), m.Complete(True))
    result = sender.falls_short()
    assert result["skipped_kinds"] == {"declined": 2, "attribute": 1}
    assert {Path(entry["path"]).name for entry in result["skipped"]} == {"b", "c", "tree"}
    assert {entry["reason"] for entry in result["skipped"]} == {"it is in the way"}
    assert result["warnings"] == ["copies"]


def test_what_is_repeated_is_counted_once(pair: Pair, receiver: RawReceiver, tree: Path) -> None:
    sender = pair.sender(tree, receiver.address)
    control, ids = offered(receiver)
    first, second = declined(ids["tree/a"], "tree/a"), declined(ids["tree/b"], "tree/b")
    control.send(first, m.Notice(("copies",)))
    assert control.expect(m.Withdrawn).file_ids == (ids["tree/a"],)
    control.close()
    control, _ = offered(receiver)
    assert control.expect(m.Withdrawn).file_ids == (ids["tree/a"],)  # that it has arrived is not known
    control.send(m.Notice(("copies",)), first, second, m.Needed((m.FileRange(ids["tree/c"], 1),), ()))
    assert control.expect(m.Withdrawn).file_ids == (ids["tree/b"],)
    digest, said = take_chunk(receiver, b"c"), control.finish()
    assert said.root_digest == digest
    assert said.left_out_counts == ()  # its own count, a receiver knows
    control.send(m.Complete(True))
    result = sender.falls_short()
    assert (result["skipped_kinds"], result["warnings"]) == ({"declined": 2}, ["copies"])


def test_an_attribute_of_a_single_file(pair: Pair, receiver: RawReceiver, tree: Path) -> None:
    sender = pair.sender(tree / "a", receiver.address)
    control, _ = offered(receiver)
    control.send(m.Needed((m.FileRange(0, 1),), ()))
    digest = take_chunk(receiver, b"a")
    assert control.expect(m.Finish).root_digest == digest
    control.send(declined(0, "a", SkipKind.ATTRIBUTE), declined(0, "a", SkipKind.ATTRIBUTE), m.Complete(True))
    assert sender.falls_short()["skipped_kinds"] == {"attribute": 1}


@pytest.mark.parametrize(("what", "file_id"), [("tree/a", 0), ("tree", 99)], ids=["one file", "what was not offered"])
def test_what_can_not_be_declined(pair: Pair, receiver: RawReceiver, tree: Path, what: str, file_id: int) -> None:
    sender = pair.sender(tree.parent / what, receiver.address)
    control, _ = offered(receiver)
    control.send(declined(file_id, "a"))
    assert control.expect(m.Abort).code is Code.PROTOCOL
    sender.fails(3, "protocol", status="refused")
