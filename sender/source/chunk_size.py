"""The chunk size of a transfer: the one that the user asks for, or one that suits what is sent."""

from filestreamer.wire import limits
from filestreamer.wire.errors import UsageError
from filestreamer.wire.grid import comfortable_chunk_size, smallest_chunk_size
from sender.settings import SenderSettings
from sender.source.item import Item


def choose_chunk_size(settings: SenderSettings, single: Item | None) -> int:
    """Return the chunk size in bytes. `single` is the one file or stream that is sent; None: a tree.

    Raises UsageError where that cuts the file into too many chunks. In a tree, the walk leaves such a file out.
    """
    if single is not None and single.stream is not None:
        return single.stream.chunk_size
    size = single.entry.size if single is not None else 0
    chunk_size = comfortable_chunk_size(size) if settings.chunk_size is None else settings.chunk_size
    if single is not None and chunk_size < smallest_chunk_size(size):
        raise UsageError(f"chunk_size {chunk_size} cuts {single.shown} {too_many_chunks(size)}")
    return chunk_size


def too_many_chunks(size: int) -> str:
    """Return what is wrong with a chunk size that is too small for a file of `size` bytes, and what to do."""
    smallest = smallest_chunk_size(size)
    remedy = f"use at least {smallest}" if smallest <= limits.CHUNK_SIZE_MAX else "no chunk size is large enough"
    return f"into more than {limits.CHUNKS_PER_FILE} chunks: {remedy}"
