"""What a receiver refuses that has fetched something itself: a sender chooses neither names nor rules."""

from typing import Any

import pytest

from filestreamer.wire import messages as m
from filestreamer.wire.errors import Code, TransferFailed
from receiver.transfer.asked import Asked

ASKED = Asked(frozenset({b"run-17", b"a\nb"}), m.Existing.SKIP, deletes=True, checksum=False, xattrs=False)
OFFER = m.Offer(1024, None, False, 0, m.Existing.SKIP)


def entry(path: bytes) -> m.Entry:
    return m.Entry(path, m.EntryType.FILE, 0, 0o644, 1)


@pytest.mark.parametrize("path", [b"run-17", b"run-17/", b"run-17/a/b", b"run-17/../x", b"a\nb/c"])
def test_what_was_asked_for_is_taken(path: bytes) -> None:
    """What is wrong with the rest of a path is found elsewhere."""
    ASKED.check_entries([entry(path)])


@pytest.mark.parametrize(
    "path",
    [b".bashrc", b"run-1", b"run-17x", b"run-17\0/a", b"", b".", b"./run-17", b"/run-17", b"RUN-17", b"../run-17"],
)
def test_other_names_are_refused(path: bytes) -> None:
    with pytest.raises(TransferFailed, match="was not asked for") as caught:
        ASKED.check_entries([entry(b"run-17/a"), entry(path)])
    assert caught.value.code is Code.POLICY


def test_the_offer_that_was_asked_for_is_taken() -> None:
    ASKED.check_offer(OFFER)
    ASKED.check_offer(OFFER._replace(delete=m.Deletion((b"run-17", b"run-17/sub"), (b"*",))))


@pytest.mark.parametrize(
    "changed",
    [
        {"existing": m.Existing.REPLACE},
        {"checksum": True},
        {"xattrs": True},
        {"dry_run": True},
        {"shard": m.Shard(0, 2)},
        {"delete": m.Deletion((b"run-17", b"other"), ())},
        {"delete": m.Deletion((b"",), ())},
    ],
)
def test_other_rules_are_refused(changed: Any) -> None:
    with pytest.raises(TransferFailed, match="was not asked for") as caught:
        ASKED.check_offer(OFFER._replace(**changed))
    assert caught.value.code is Code.POLICY


def test_nothing_is_removed_that_was_not_asked_for() -> None:
    kept = Asked(frozenset({b"run-17"}), m.Existing.SKIP, deletes=False, checksum=False, xattrs=False)
    with pytest.raises(TransferFailed, match="remove files"):
        kept.check_offer(OFFER._replace(delete=m.Deletion((b"run-17",), ())))


def test_a_name_is_shown_escaped() -> None:
    with pytest.raises(TransferFailed) as caught:
        ASKED.check_entries([entry(b"\x1b[2J\xff")])
    assert "\x1b" not in str(caught.value)
    assert "\n" not in str(caught.value)
