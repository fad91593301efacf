"""Which files are tried again, how often, and what becomes of the others."""

from collections.abc import Sequence
from typing import Any

import pytest

from filestreamer.telemetry.counters import Skipped
from filestreamer.wire.errors import Code
from filestreamer.wire.messages import SkipKind
from sender import second_tries
from sender.listing.changed_files import ChangedFile
from sender.listing.listing import ListedAgain
from sender.second_tries import TRIES_MAX, SecondTries
from sender.source.item import Unsendable
from tests.support.manifests import item_of

ITEM, OTHER = item_of(1, b"tree/a"), item_of(1, b"tree/b")


def error(kind: SkipKind) -> Unsendable:
    return Unsendable(Code.SOURCE, "why", kind, "why")


class World:
    """The listing thread, and what is skipped."""

    def __init__(self) -> None:
        self.listed: list[list[ChangedFile]] = []
        self.skipped: list[SkipKind] = []
        stand_in: Any = self
        self.tries = SecondTries(stand_in, stand_in)

    def list_again(self, files: Sequence[ChangedFile]) -> None:
        self.listed.append(list(files))

    def add(self, skipped: Skipped) -> None:
        self.skipped.append(skipped.kind)


@pytest.fixture
def world() -> World:
    return World()


def test_a_changed_file_is_listed_again_once_everything_else_is_done(world: World) -> None:
    assert world.tries.go_on()
    world.tries.take(ITEM, error(SkipKind.CHANGED))
    assert world.listed == []
    assert not world.tries.go_on()
    assert not world.tries.go_on()
    assert [[file.item for file in files] for files in world.listed] == [[ITEM]]
    world.tries.take_listed(ListedAgain([]))
    assert world.tries.go_on()
    assert world.skipped == []


@pytest.mark.parametrize("kind", [SkipKind.VANISHED, SkipKind.UNREADABLE])
def test_a_file_that_is_gone_or_can_not_be_read_is_skipped_at_once(world: World, kind: SkipKind) -> None:
    world.tries.take(ITEM, error(kind))
    assert world.tries.go_on()
    assert world.skipped == [kind]


def test_another_name_of_a_file_whose_first_name_is_gone_is_tried(world: World) -> None:
    world.tries.take(ITEM._replace(identity=None), error(SkipKind.VANISHED))
    assert not world.tries.go_on()
    assert world.skipped == []


def test_a_file_that_changes_each_time_is_skipped_once(world: World) -> None:
    for _ in range(TRIES_MAX):
        world.tries.take(ITEM, error(SkipKind.CHANGED))
        assert not world.tries.go_on()
        world.tries.take_listed(ListedAgain([]))
    world.tries.take(ITEM, error(SkipKind.CHANGED))
    assert world.tries.go_on()
    assert world.skipped == [SkipKind.CHANGED]


def test_a_file_that_is_given_up_is_skipped_for_what_was_found_then(world: World) -> None:
    world.tries.take(ITEM, error(SkipKind.CHANGED))
    assert not world.tries.go_on()
    world.tries.take_listed(ListedAgain([ChangedFile(ITEM, error(SkipKind.VANISHED))]))
    assert world.tries.go_on()
    assert world.skipped == [SkipKind.VANISHED]


def test_files_that_wait_when_a_transfer_fails_are_told(world: World) -> None:
    world.tries.take(ITEM, error(SkipKind.CHANGED))
    world.tries.give_up()
    world.tries.give_up()
    assert world.skipped == [SkipKind.CHANGED]


def test_no_more_than_so_many_files_wait(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(second_tries, "FILES_MAX", 1)
    world.tries.take(ITEM, error(SkipKind.CHANGED))
    world.tries.take(OTHER, error(SkipKind.CHANGED))
    assert world.skipped == [SkipKind.CHANGED]
