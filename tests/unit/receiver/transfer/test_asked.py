"""What a receiver refuses that has fetched something itself: a sender chooses neither names nor rules."""

from typing import Any

import pytest

from filestreamer.wire import messages as m
from filestreamer.wire.errors import Code, TransferFailed
from filestreamer.wire.patterns import pattern_filter
from receiver.transfer.asked import Asked

KEPT = (b"mine", b"*.o")
NAMES = frozenset({b"run-17", b"a\nb"})
ASKED = Asked(NAMES, m.Existing.SKIP, deletes=True, checksum=False, xattrs=False, excludes=KEPT)
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
    ASKED.check_offer(OFFER._replace(delete=m.Deletion((b"run-17", b"run-17/sub"), KEPT)))


@pytest.mark.parametrize(
    "changed",
    [
        {"existing": m.Existing.REPLACE},
        {"checksum": True},
        {"xattrs": True},
        {"dry_run": True},
        {"shard": m.Shard(0, 2)},
        {"delete": m.Deletion((b"run-17", b"other"), KEPT)},
        {"delete": m.Deletion((b"",), KEPT)},
        {"delete": m.Deletion((b"run-17",), ())},
        {"delete": m.Deletion((b"run-17",), (b"mine",))},
        {"delete": m.Deletion((b"run-17",), (*KEPT, b"!mine"))},
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


@pytest.mark.parametrize(
    ("include", "exclude", "taken", "refused"),
    [
        ([], ["mine"], [b"run-17/a", b"mine"], [b"run-17/mine", b"run-17/a/mine", b"run-17/mine/a"]),
        ([], ["/mine"], [b"run-17/a/mine"], [b"run-17/mine"]),
        (["*.jpg"], [], [b"run-17", b"run-17/a.jpg", b"run-17/a/b.jpg"], [b"run-17/a", b"run-17/.bashrc"]),
        (["*.jpg"], ["mine"], [b"run-17/a.jpg"], [b"run-17/mine/a.jpg"]),
    ],
)
def test_what_was_left_out_is_refused(
    include: list[str], exclude: list[str], taken: list[bytes], refused: list[bytes]
) -> None:
    names = frozenset({b"run-17", b"mine"})
    wanted = pattern_filter(include, exclude)
    asked = Asked(names, m.Existing.SKIP, deletes=False, checksum=False, xattrs=False, wanted=wanted)
    asked.check_entries([entry(path) for path in taken])
    for path in refused:
        with pytest.raises(TransferFailed, match="was not asked for") as caught:
            asked.check_entries([entry(taken[0]), entry(path)])
        assert caught.value.code is Code.POLICY


def test_directories_on_the_way_to_what_was_chosen_are_taken() -> None:
    """What is kept at the destination is not touched, whatever its name is."""
    wanted = pattern_filter(["*.jpg"], ["mine/"])
    asked = Asked(frozenset({b"a"}), m.Existing.SKIP, deletes=False, checksum=False, xattrs=False, wanted=wanted)
    asked.check_entries([entry(b"a/b")._replace(type=m.EntryType.DIRECTORY)])
    asked.check_entries([entry(b"a/mine")._replace(type=m.EntryType.KEPT)])
    with pytest.raises(TransferFailed, match="was not asked for"):
        asked.check_entries([entry(b"a/mine")._replace(type=m.EntryType.DIRECTORY)])


def test_a_name_is_shown_escaped() -> None:
    with pytest.raises(TransferFailed) as caught:
        ASKED.check_entries([entry(b"\x1b[2J\xff")])
    assert "\x1b" not in str(caught.value)
    assert "\n" not in str(caught.value)
