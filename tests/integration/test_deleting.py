"""`sender --delete` into `receiver --allow-delete`: an exact mirror, or nothing is removed at all."""

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from filestreamer.wire import messages as m
from filestreamer.wire.digests import root_digest
from filestreamer.wire.errors import Code
from tests.integration.test_trees import unprivileged
from tests.support import sending, trees
from tests.support.peer import RawSender
from tests.support.services import Pair, tree


def mirror(pair: Pair, *args: object, receiver: tuple[object, ...] = ("--allow-delete",)) -> dict[str, Any]:
    """Mirror to a receiver of its own; return the sender's result, which agrees with the receiver's."""
    there = pair.receiver("--once", *receiver)
    sent = pair.start("sender", *args, "--delete", "--to", pair.address(there)).succeeds()
    received = there.succeeds()
    for key in ("deleted_files", "undeletable_files", "warnings"):
        assert sent[key] == received[key], key
    removed = [line["path"] for line in there.events("entry_removed")]
    assert len(removed) == min(sent["deleted_files"], 100)
    return sent


@pytest.fixture
def source(pair: Pair) -> Path:
    source = pair.source / "tree"
    for name in ("a", "sub/b", "sub/deep/c", "x.tmp"):
        trees.write(source / name, name.encode())
    (source / "empty").mkdir()
    (source / "link").symlink_to("a")
    os.link(source / "a", source / "twin")
    return source


def test_a_mirror_is_exact(pair: Pair, source: Path) -> None:
    assert mirror(pair, source)["deleted_files"] == 0
    there = pair.destination / "tree"
    for name in ("old/1/2", "sub/old", "empty/x", "z"):
        trees.write(there / name, b"old")
    trees.write(pair.destination / "beside", b"kept")
    (source / "a").unlink()
    os.utime(source, ns=(0, 1_000_000_007))
    os.utime(source / "empty", ns=(0, 1_000_000_008))
    sent = mirror(pair, source)
    assert trees.differences(source, there) == []
    assert (sent["deleted_files"], sent["sent_bytes"]) == (7, 0)
    assert pair.received() == ["beside", "tree"]
    assert mirror(pair, source)["deleted_files"] == 0


def test_the_contents_of_a_directory_and_a_directory_beside_it(pair: Pair, source: Path) -> None:
    for name in ("old", "sub/old", ".filestreamer/token", "more/old"):
        trees.write(pair.destination / name, b"a token of some length")
    trees.write(pair.source / "more" / "m", b"m")
    mirror(pair, f"{source}/", pair.source / "more", "--exclude", "*.tmp")
    assert {name for name in tree(pair.destination) if "old" in name} == set()
    assert {".filestreamer/token", "more/m", "a", "sub/b"} <= set(tree(pair.destination))


def test_a_single_file_in_a_directory(pair: Pair) -> None:
    """What a mirror sends is a tree, whatever is in it: the file could not be told from one that is sent alone."""
    trees.write(pair.source / "one" / "a", b"a")
    trees.write(pair.destination / "old", b"old")
    one = f"{pair.source / 'one'}/"
    receiver = pair.receiver("--once", "--allow-delete")
    asked = pair.start("sender", one, "--delete", "--dry-run", "--to", pair.address(receiver))
    assert asked.wait() == 0
    shown = [line.split() for line in asked.stdout.splitlines()[:2]]
    assert [(words[0], words[-1]) for words in shown] == [("new", "a"), ("extra", "old")]
    receiver.end()
    mirror(pair, one)
    assert pair.received() == ["a"]


def test_what_is_excluded_is_neither_sent_nor_removed(pair: Pair, source: Path) -> None:
    there = pair.destination / "tree"
    for name in ("y.tmp", "old/z.tmp", "old/w", "x.tmp"):
        trees.write(there / name, b"kept")
    mirror(pair, source, "--exclude", "*.tmp")
    assert (there / "x.tmp").read_bytes() == b"kept"
    assert {"y.tmp", "old", "old/z.tmp"} <= set(tree(there))
    assert "old/w" not in tree(there)


def test_directories_that_their_modes_close_to_their_owner_are_removed(pair: Pair, source: Path) -> None:
    """A cache of packages is read-only, directories too; what has to stay in one leaves its mode as it was."""
    mirror(pair, source)
    there = pair.destination / "tree"
    for name in ("old/in/file", "old/in/deep/file", "shut/file", "half/file", "half/kept.tmp"):
        trees.write(there / name, b"old")
    for name, mode in (("old/in/deep", 0o500), ("old/in", 0o555), ("old", 0o555), ("shut", 0), ("half", 0o1555)):
        (there / name).chmod(mode)
    receiver = pair.start(
        *("receiver", "--listen", "127.0.0.1:0", "--directory", pair.destination, "--allow-delete"),
        under=unprivileged(),
    )
    address = pair.address(receiver)
    sent = pair.sender(source, address, "--delete", "--exclude", "*.tmp").succeeds()
    assert (sent["deleted_files"], sent["undeletable_files"]) == (8, 0)
    assert sorted(path.name for path in there.iterdir()) == ["a", "empty", "half", "link", "sub", "twin", "x.tmp"]
    assert os.listdir(there / "half") == ["kept.tmp"]
    assert stat.S_IMODE((there / "half").stat().st_mode) == 0o1555


@pytest.mark.parametrize("mode", [0, 0o300, 0o600])
def test_a_dry_run_tells_of_a_directory_into_which_it_can_not_look(pair: Pair, source: Path, mode: int) -> None:
    """A transfer removes it, with what is in it."""
    mirror(pair, source)
    shut = trees.write(pair.destination / "tree" / "shut" / "file", b"old").parent
    shut.chmod(mode)
    receiver = pair.start(
        *("receiver", "--listen", "127.0.0.1:0", "--directory", pair.destination, "--allow-delete"),
        under=unprivileged(),
    )
    asking = pair.sender(source, pair.address(receiver), "--delete", "--dry-run")
    assert asking.wait() == 0
    assert [line.split() for line in asking.stdout.splitlines() if "shut" in line] == [["extra", "tree/shut"]]
    assert "can't remove" not in asking.stderr
    assert pair.sender(source, pair.address(receiver), "--delete").succeeds()["deleted_files"] == 2


def test_special_files_are_not_moved_and_their_names_are_kept(pair: Pair, source: Path) -> None:
    os.mkfifo(source / "sub" / "fifo")
    trees.write(pair.destination / "tree" / "sub" / "fifo", b"kept")
    assert mirror(pair, source)["skipped_kinds"] == {"special": 1}
    assert (pair.destination / "tree" / "sub" / "fifo").read_bytes() == b"kept"


def test_a_receiver_that_does_not_permit_it(pair: Pair, source: Path) -> None:
    trees.write(pair.destination / "tree" / "old", b"kept")
    receiver = pair.receiver()
    sender = pair.sender(source, pair.address(receiver), "--delete")
    assert "--allow-delete" in sender.fails(3, "policy", status="refused")
    assert tree(pair.destination) == {"tree": -1, "tree/old": 4}


@pytest.mark.parametrize("listed", [(), ("--dry-run",)])
def test_an_empty_source_is_refused(pair: Pair, source: Path, listed: tuple[str, ...]) -> None:
    """It may not be mounted: nothing would be left at the destination."""
    trees.write(pair.destination / "kept", b"kept")
    (pair.source / "unmounted" / "lost+found").mkdir(parents=True)
    receiver = pair.receiver("--once", "--job", "x", "--allow-delete")
    paths = (f"{pair.source / 'unmounted'}/", source)
    sender = pair.start("sender", *paths, "--to", pair.address(receiver), "--job", "x", "--delete", *listed)
    assert "unmounted is empty" in sender.fails(4, "source")
    if not listed:
        assert "is empty" in receiver.fails(4, "source")
    assert (pair.destination / "kept").read_bytes() == b"kept"


def test_nothing_is_removed_if_something_changed_meanwhile(
    pair: Pair, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trees.write(pair.destination / "tree" / "old", b"kept")
    receiver = pair.receiver("--once", "--allow-delete")
    with sending.once_listed(monkeypatch, (source / "sub" / "b").unlink):
        sending.send(source, "--to", pair.address(receiver), "--delete")
    result = receiver.falls_short()
    assert result["skipped_kinds"] == {"vanished": 1}
    assert result["deleted_files"] == 0
    assert "nothing was removed" in result["warnings"][0]
    assert (pair.destination / "tree" / "old").exists()


@pytest.mark.parametrize("name", ["a", "sub/b", "sub/deep/c"])
def test_a_file_that_is_sent_at_the_second_try_is_as_good(
    pair: Pair, source: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """It is listed again behind everything else, outside of its directory."""
    for old in ("old", "sub/old", "sub/deep/old"):
        trees.write(pair.destination / "tree" / old, b"old")
    receiver = pair.receiver("--once", "--allow-delete")
    with sending.once_listed(monkeypatch, lambda: (source / name).write_bytes(b"changed")):
        sending.send(source, "--to", pair.address(receiver), "--delete")
    result = receiver.succeeds()
    assert (result["deleted_files"], result["warnings"]) == (3, [])
    assert tree(pair.destination / "tree") == tree(source)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("tree", "--include", "*.txt"), "--include"),
        (("tree/a", "--shard", "0/2"), "shard"),
        (("-",), "standard input"),
        (("tree/a",), "DIR"),
    ],
)
def test_wrong_usage(pair: Pair, source: Path, args: tuple[str, ...], says: str) -> None:
    sender = pair.start("sender", *args, "--delete", "--to", "127.0.0.1:1", cwd=pair.source)
    assert says in sender.fails(2, "usage")


def test_what_would_be_offered_to_a_mirror(pair: Pair, source: Path) -> None:
    """Without --to: names that are only kept are not among it, and a plain file is none."""
    os.mkfifo(source / "fifo")
    listed = pair.start("sender", "tree", "--delete", "--dry-run", cwd=pair.source)
    assert listed.wait() == 0
    assert "tree/sub/deep/c" in listed.stdout
    assert "fifo" not in listed.stdout
    wrong = pair.start("sender", "tree/a", "--delete", "--dry-run", cwd=pair.source)
    assert wrong.wait() == 2
    assert "DIR" in wrong.stderr


def test_a_plain_file_beside_a_directory_removes_nothing_at_the_top(pair: Pair, source: Path) -> None:
    trees.write(pair.destination / "old", b"kept")
    mirror(pair, source, pair.file("file", 10))
    assert pair.received() == ["file", "old", "tree"]


def test_what_another_transfer_is_receiving_stays(pair: Pair, source: Path) -> None:
    """A file that stands there is not removed while another transfer is about to replace it."""
    trees.write(pair.destination / "busy", b"older")
    trees.write(pair.destination / "free", b"older")
    receiver = pair.receiver("--allow-delete")
    with RawSender(pair.address(receiver)) as peer:
        control = peer.control()
        control.send(
            m.Offer(8, None, False, 8), m.ManifestPart(0, (m.Entry(b"busy", m.EntryType.FILE, 8, 0o644, 1),), True)
        )
        control.expect(m.Needed)
        sender = pair.start("sender", f"{source}/", "--delete", "--to", pair.address(receiver))
        sender.succeeds()
    assert (pair.destination / "busy").read_bytes() == b"older"
    assert not (pair.destination / "free").exists()


DIRECTORY = m.Entry(b"tree", m.EntryType.DIRECTORY, 0, 0o755, 0)


@pytest.mark.parametrize(
    ("offer", "entries", "code"),
    [
        (m.Offer(8, None, False, 0, delete=m.Deletion((b"tree",))), [DIRECTORY._replace(path=b"a/b")], Code.PROTOCOL),
        (m.Offer(8, None, False, 0, delete=m.Deletion((b"..",))), [DIRECTORY], Code.PATH),
        (m.Offer(8, None, False, 0, delete=m.Deletion((b"tree",), (b"!",))), [DIRECTORY], Code.POLICY),
        (
            m.Offer(8, None, False, 0, delete=m.Deletion((b"f",))),
            [m.Entry(b"f", m.EntryType.FILE, 8, 0o644, 0)],
            Code.PROTOCOL,
        ),
    ],
)
def test_a_hostile_sender(pair: Pair, offer: m.Offer, entries: list[m.Entry], code: Code) -> None:
    trees.write(pair.destination / "tree" / "old", b"kept")
    receiver = pair.receiver("--allow-delete")
    with RawSender(pair.address(receiver)) as peer:
        control = peer.control()
        control.send(offer, m.ManifestPart(0, tuple(entries), True))
        control.send(m.Finish(0, root_digest([])))
        aborts = [message for message in control.rest() if isinstance(message, m.Abort)]
        assert [abort.code for abort in aborts] == [code]
    assert (pair.destination / "tree" / "old").read_bytes() == b"kept"
