"""The chunk size of a transfer: the one that the user asks for, or one that suits what is sent."""

from filestreamer.wire import limits
from filestreamer.wire.errors import UsageError
from filestreamer.wire.grid import comfortable_chunk_size, smallest_chunk_size
from sender.settings import SenderSettings
from sender.source.item import Item


def choose_chunk_size(settings: SenderSettings, single: Item | None) -> int:
    """Return the chunk size in bytes. `single` is the one file or stream that is sent; None: a tree.

    Raises UsageError where the size that was asked for cuts the file into too many chunks.
    """
    if single is not None and single.stream is not None:
        return single.stream.chunk_size
    size = single.entry.size if single is not None else 0
    if settings.chunk_size is None:
        return comfortable_chunk_size(size)
    smallest = smallest_chunk_size(size)
    if single is not None and settings.chunk_size < smallest:
        raise UsageError(
            f"chunk_size {settings.chunk_size} cuts {single.shown} into more than {limits.CHUNKS_PER_FILE} chunks:"
            f" use at least {smallest}"
        )
    return settings.chunk_size
