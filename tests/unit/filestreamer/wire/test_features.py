"""What a peer of the same version may not know (proto/README.md, "Features")."""

import pytest

from filestreamer.wire import features, limits
from filestreamer.wire import messages as m
from filestreamer.wire.errors import Code, TransferFailed

FILE = m.Entry(b"f", m.EntryType.FILE, 8, 0o644, 0)
STREAM = m.Entry(b"s", m.EntryType.STREAM, 0, 0o644, 0)
LINK = m.Entry(b"l", m.EntryType.SYMLINK, 0, 0o777, 0, link_target=b"f")
KEPT = m.Entry(b"k", m.EntryType.KEPT, 0, 0, 0)
OFFER = m.Offer(8, None, False, 0)


def part(*entries: m.Entry, first: int = 0, last: bool = True) -> m.ManifestPart:
    return m.ManifestPart(first, entries, last)


USES: dict[str, tuple[m.Offer | m.ManifestPart, set[str]]] = {
    "an offer": (OFFER, set()),
    "a shard": (OFFER._replace(shard=m.Shard(0, 2)), {features.SHARDS}),
    "comparing": (OFFER._replace(checksum=True), {features.CHECKSUM}),
    "a shard, comparing": (OFFER._replace(shard=m.Shard(0, 2), checksum=True), {features.SHARDS, features.CHECKSUM}),
    "replacing": (OFFER._replace(existing=m.Existing.REPLACE), set()),
    "leaving": (OFFER._replace(existing=m.Existing.SKIP), {features.EXISTING}),
    "deleting": (OFFER._replace(delete=m.Deletion((b"d",))), {features.DELETE}),
    "asking": (OFFER._replace(dry_run=True), {features.DRY_RUN}),
    "a name that is kept": (part(KEPT), {features.TREES, features.DELETE}),
    "a file": (part(FILE), set()),
    "a sparse file": (part(FILE._replace(data_bytes=0)), set()),
    "a stream": (part(STREAM), {features.STREAMS}),
    "a user": (part(FILE._replace(uid=0)), {features.OWNER}),
    "a group": (part(FILE._replace(gid=0)), {features.OWNER}),
    "a file in a directory": (part(FILE._replace(path=b"d/f")), {features.TREES}),
    "a symlink": (part(LINK), {features.TREES}),
    "two files": (part(FILE, FILE._replace(path=b"g")), {features.TREES}),
    "nothing": (part(), {features.TREES}),
    "one file, and more to come": (part(FILE, last=False), {features.TREES}),
    "one more file": (part(FILE, first=7), {features.TREES}),
    "all": (part(LINK, FILE._replace(gid=3), STREAM), {features.TREES, features.OWNER, features.STREAMS}),
}


@pytest.mark.parametrize("what", USES)
def test_what_a_sender_has_to_name(what: str) -> None:
    message, uses = USES[what]
    features.check_named(tuple(uses), message)
    features.check_named(features.KNOWN, message)
    features.check_named(("a-name-of-a-later-version", *features.KNOWN), message)
    for name in uses:
        with pytest.raises(TransferFailed, match=f"'{name}'") as caught:
            features.check_named(set(features.KNOWN) - {name}, message)
        assert caught.value.code is Code.POLICY


@pytest.mark.parametrize(
    ("name", "says"),
    [
        (features.CHECKSUM, "leave out --checksum"),
        (features.OWNER, "leave out --owner"),
        (features.DELETE, "leave out --delete"),
        (features.DRY_RUN, "leave out --to"),
        (features.EXISTING, "leave out --existing"),
        (features.SHARDS, "does not support shards (feature 'shards'): upgrade it, or leave out --shard"),
        (features.STREAMS, "send a file"),
        (features.TREES, "send one file, or use: tar c DIR | filestreamer-sender -"),
    ],
)
def test_what_people_are_told_of_a_receiver_that_does_not_name_it(name: str, says: str) -> None:
    features.require(features.KNOWN, name)
    features.require((), *())
    with pytest.raises(TransferFailed) as caught:
        features.require(set(features.KNOWN) - {name}, *features.KNOWN)
    assert caught.value.code is Code.POLICY
    assert says in caught.value.reason
    assert f"'{name}'" in caught.value.reason


def test_the_names() -> None:
    """They are as Greeting and Hello have to list them."""
    assert list(features.KNOWN) == sorted(set(features.KNOWN))
    assert len(features.KNOWN) <= limits.FEATURES_MAX
    assert all(len(name) <= limits.FEATURE_NAME_BYTES for name in features.KNOWN)
