"""What a sender asks of a receiver before the manifest: the features that it needs, and the Offer."""

from filestreamer.wire import features
from filestreamer.wire import messages as m
from sender.settings import SenderSettings
from sender.source.item import Item


def needed_features(settings: SenderSettings, single: Item | None, *, is_dry: bool = False) -> tuple[str, ...]:
    """Return the features that a transfer, or a dry run, requires of the receiver; `single` is its only entry."""
    uses = {
        features.DRY_RUN: is_dry,
        features.TREES: single is None,
        features.STREAMS: single is not None and single.stream is not None,
        features.SHARDS: settings.shard.count > 1,
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
        m.Shard(share.index, share.count) if share.count > 1 else None,
        settings.checksum,
        single.sent_bytes if single is not None else 0,
        settings.existing,
        deletion,
        is_dry,
        xattrs=settings.xattrs and not is_dry,
    )
