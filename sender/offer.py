"""What a sender asks of a receiver before the manifest: the features that it needs, and the Offer."""

from filestreamer.wire import features
from filestreamer.wire import messages as m
from filestreamer.wire.errors import RemoteProtocolError, UsageError
from sender.settings import SenderSettings
from sender.source.item import Item


def check_shard(settings: SenderSettings, single: Item | None) -> None:
    """Check that what is sent can be sent in shards; `single` is its only entry. Raises UsageError."""
    if settings.shard.count == 1:
        return
    if single is None and settings.job is None:
        raise UsageError(
            "--shard of directories, or of several paths, needs --job NAME: the same for all shards of one run, and"
            " another one for each run"
        )
    if single is not None and settings.existing is not m.Existing.REPLACE:
        raise UsageError("--existing: shards of a single file have no say in that: receiver --no-replace has")


def needed_features(settings: SenderSettings, single: Item | None, *, is_dry: bool = False) -> tuple[str, ...]:
    """Return the features that a transfer, or a dry run, requires of the receiver; `single` is its only entry."""
    uses = {
        features.DRY_RUN: is_dry,
        features.TREES: single is None,
        features.STREAMS: single is not None and single.stream is not None,
        features.SHARDS: settings.shard.count > 1 and single is not None,
        features.TREE_SHARDS: settings.shard.count > 1 and single is None,
        features.OWNER: settings.owner,
        features.CHECKSUM: settings.checksum,
        features.EXISTING: settings.existing is not m.Existing.REPLACE,
        features.DELETE: settings.delete,
        features.XATTRS: settings.xattrs and not is_dry,
    }
    return tuple(sorted(name for name, is_used in uses.items() if is_used))


def make_offer(
    settings: SenderSettings, chunk_size: int, single: Item | None, deletion: m.Deletion | None, *, is_dry: bool = False
) -> m.Offer:
    """Return the Offer of a transfer, or of a dry run, which names no attributes."""
    share = settings.shard
    return m.Offer(
        chunk_size,
        m.Shard(share.index, share.count, tree=single is None) if share.count > 1 else None,
        settings.checksum,
        single.sent_bytes if single is not None else 0,
        settings.existing,
        deletion,
        is_dry,
        xattrs=settings.xattrs and not is_dry,
    )


def check_complete(offer: m.Offer, complete: m.Complete) -> None:
    """Check that a receiver counts only what the Offer asks for. Raises RemoteProtocolError."""
    if offer.delete is None and (complete.deleted or complete.undeletable):
        raise RemoteProtocolError("the receiver counts entries to remove, which was not asked for")
    if offer.existing not in (m.Existing.SKIP, m.Existing.NEWER) and complete.left:
        raise RemoteProtocolError("the receiver counts entries that it leaves as they are, which was not asked for")
    is_tree_shard = offer.shard is not None and offer.shard.tree
    if not is_tree_shard and (complete.shards_finished or complete.job_files or complete.job_bytes):
        raise RemoteProtocolError("the receiver counts shards of a tree, and this is none")
