"""The features that a peer of the same protocol version may lack (proto/README.md, "Features").

Greeting and Hello name the features that each end knows. A sender uses a feature only where the receiver has named it,
and a receiver takes a feature only from a sender that has named it. Either end refuses everything else by the name of
the feature, before the first byte: an option that an older peer ignored would silently write something else.
"""

from collections.abc import Collection, Iterator
from typing import Final, NamedTuple

from filestreamer.wire import messages as m
from filestreamer.wire.errors import Code, TransferFailed

CHECKSUM: Final = "checksum"
CHUNK_RUNS: Final = "chunk-runs"
DELETE: Final = "delete"
DRY_RUN: Final = "dry-run"
EXISTING: Final = "existing"
OWNER: Final = "owner"
SHARDS: Final = "shards"
STREAMS: Final = "streams"
TREE_SHARDS: Final = "tree-shards"
TREES: Final = "trees"
XATTRS: Final = "xattrs"


class _Feature(NamedTuple):
    """The parts of the error message if the receiver lacks a feature: what it does, and what to do instead."""

    what: str
    instead: str


_FEATURES: Final = {
    CHECKSUM: _Feature("comparing files that are there by their bytes", "leave out --checksum"),
    DELETE: _Feature("removing what is not at the source", "leave out --delete"),
    DRY_RUN: _Feature("being asked first", "leave out --to: then --dry-run lists what would be offered"),
    EXISTING: _Feature("leaving files that exist as they are", "leave out --existing"),
    OWNER: _Feature("owners", "leave out --owner"),
    SHARDS: _Feature("shards", "leave out --shard"),
    STREAMS: _Feature("standard input", "send a file"),
    TREE_SHARDS: _Feature("shards of directories, or of several paths", "leave out --shard"),
    TREES: _Feature("directories, or several paths", "send one file, or use: tar c DIR | filestreamer-sender -"),
    XATTRS: _Feature("extended attributes", "leave out --xattrs"),
}
KNOWN: Final = tuple(sorted((*_FEATURES, CHUNK_RUNS)))
"""The names that this version of both services knows, as Greeting and Hello list them."""


def require(named: Collection[str], *wanted: str) -> None:
    """Check that a receiver which has `named` its features has those that a transfer needs.

    Raises TransferFailed(POLICY), which names the first feature that the receiver does not have.
    """
    for name in wanted:
        if name not in named:
            what, instead = _FEATURES[name]
            reason = f"the receiver does not support {what} (feature '{name}'): upgrade it, or {instead}"
            raise TransferFailed(Code.POLICY, reason)


def check_named(named: Collection[str], message: m.Offer | m.ManifestPart) -> None:
    """Check that a sender which has `named` its features uses no other ones.

    Raises TransferFailed(POLICY), which names the feature.
    """
    if set(KNOWN).issubset(named):  # nearly always: the entries need not be looked at
        return
    for name in _used_by_offer(message) if isinstance(message, m.Offer) else _used_by_part(message):
        if name not in named:
            reason = f"the sender uses the feature '{name}', which its Hello does not name: upgrade the sender"
            raise TransferFailed(Code.POLICY, reason)


def _used_by_offer(offer: m.Offer) -> Iterator[str]:
    if offer.checksum:
        yield CHECKSUM
    if offer.delete is not None:
        yield DELETE
    if offer.dry_run:
        yield DRY_RUN
    if offer.existing is not m.Existing.REPLACE:
        yield EXISTING
    if offer.shard is not None:
        yield TREE_SHARDS if offer.shard.tree else SHARDS
    if offer.xattrs:
        yield XATTRS


def _used_by_part(part: m.ManifestPart) -> Iterator[str]:
    if part.more_xattrs:  # of an entry that came before
        yield XATTRS
        return
    if not _is_alone(part):
        yield TREES
    for entry in part.entries:
        if entry.type is m.EntryType.STREAM:
            yield STREAMS
        if entry.type is m.EntryType.KEPT:
            yield DELETE
        if entry.uid is not None or entry.gid is not None:
            yield OWNER
        if entry.xattrs:
            yield XATTRS


def _is_alone(part: m.ManifestPart) -> bool:
    """Return whether a part is the whole manifest of one FILE or STREAM, which is no tree."""
    if part.first_file_id or not (part.last or part.xattrs_continue) or len(part.entries) != 1:
        return False
    return part.entries[0].is_no_tree
