"""One part of the manifest: its entries, the chunks that they make, and what the receiver answered for small files.

A part is what one ManifestPart lists. Its files are cut into chunks by themselves (`layout`). A file of several
segments is large, and each of its segments is a chunk; small files are bundled. `chunk_states` keeps the answers for
the chunks of large files. Small files are answered one by one, which is kept here. Their bundle is ready to be sent
once none of its files is unanswered, or still being compared.
"""

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final

from filestreamer.wire.grid import WHOLE, Grid, Share
from filestreamer.wire.layout import Layout
from filestreamer.wire.messages import ManifestPart, Segment
from filestreamer.wire.tree_shares import TreeShares
from filestreamer.wire.xattr_parts import split
from sender.source.item import Item
from sender.source.stream import Stream

# The states of a small file. Any other entry is NOT_SMALL: it has no segment, or several.
NOT_SMALL: Final = 0
UNANSWERED: Final = 1
COMPARING: Final = 2
"""The receiver holds the file, and `verify` compares it with the source."""
NEEDED: Final = 3
"""The bundle carries the file."""
NOT_NEEDED: Final = 4
"""The bundle leaves the file out: the receiver has it, or it is withdrawn."""

_IS_CARRIED: Final = (NEEDED, NOT_SMALL)
_IS_OPEN: Final = (UNANSWERED, COMPARING)


class Part:
    """The entries of one ManifestPart, and their chunks. All ids count over the transfer."""

    def __init__(
        self,
        first_file_id: int,
        first_chunk: int,
        items: Sequence[Item],
        chunk_size: int,
        *,
        last: bool,
        shares: TreeShares | None = None,
    ) -> None:
        """`shares` says which segments of large files are sent, where this is a part of a shard of a tree."""
        self.first_file_id = first_file_id
        self.first_chunk = first_chunk
        self.items = items
        self.last = last
        """Whether no part follows."""
        self._sizes = [item.sent_bytes for item in items]
        self.layout = Layout(chunk_size, self._sizes)
        self._shares: dict[int, Share] = {}
        """Files that other shards send, too, by index: which segments this one sends."""
        if shares is not None:
            for index, item in enumerate(items):
                if self._sizes[index] > chunk_size and (share := shares.share_of(item.entry)) is not WHOLE:
                    self._shares[index] = share
        self.forget_answers()
        self.chunks = self.layout.chunks
        self.end_chunk = first_chunk + self.chunks
        self.end_file_id = first_file_id + len(items)
        self.bytes = sum(map(self.size_bytes, self.files)) if self._shares else sum(self._sizes)
        """Bytes of its segments, without those that other shards send."""
        self.unanswered_chunks = self.open_chunks = self.chunks
        """How many of its chunks are not answered, and how many are not done; `send_queue` counts them."""
        self.is_sent = False
        """Whether it was sent on this control connection."""
        self.withdrawn_before = 0
        """How many files were said to be withdrawn on this control connection before this part was sent."""

    def forget_answers(self) -> None:
        """Drop the answers for all small files."""
        layout, first = self.layout, self.first_chunk
        small = [0 < size <= layout.chunk_size for size in self._sizes]
        self._small_files = bytearray([UNANSWERED if is_small else NOT_SMALL for is_small in small])
        self._unready_files = Counter([first + chunk for chunk in itertools.compress(layout.first_chunks, small)])
        """For each bundle, by chunk id: how many of its files are unanswered, or being compared."""
        self._carrying: set[int] = set()
        """Bundles that have a file that is needed."""

    @property
    def messages(self) -> Iterator[ManifestPart]:
        """The messages that offer it: one, unless its last entry has large extended attributes."""
        return split(ManifestPart(self.first_file_id, tuple(item.entry for item in self.items), self.last))

    @property
    def is_done(self) -> bool:
        """Whether it was sent, and all of its chunks are done."""
        return self.is_sent and not self.open_chunks

    @property
    def files(self) -> range:
        """The file_ids of its entries."""
        return range(self.first_file_id, self.end_file_id)

    def item(self, file_id: int) -> Item:
        """Return one entry."""
        return self.items[file_id - self.first_file_id]

    def grid(self, file_id: int) -> Grid:
        """Return the segments of one file."""
        return self.layout.grid(file_id - self.first_file_id)

    def is_large(self, file_id: int) -> bool:
        """Whether a file has several segments, which are chunks of their own."""
        return self._sizes[file_id - self.first_file_id] > self.layout.chunk_size

    def with_segments(self, files: range) -> list[int]:
        """Return those of these files that are in this part and have segments."""
        first = self.first_file_id
        inner = range(max(files.start, first), min(files.stop, self.end_file_id))
        return [file_id for file_id in inner if self._sizes[file_id - first]]

    def chunk_of(self, file_id: int, segment: int) -> int:
        """Return the chunk that carries a segment of a file."""
        return self.first_chunk + self.layout.chunk_of(file_id - self.first_file_id, segment)

    def chunks_of(self, file_id: int) -> range:
        """Return the chunks of a large file."""
        first = self.chunk_of(file_id, 0)
        return range(first, first + self.grid(file_id).segments)

    def end_of_run(self, chunk_id: int, file_id: int) -> int:
        """Return the end of the chunks that may follow this one of a file in a run: of large files, the full ones."""
        if self.is_bundle(chunk_id):
            return chunk_id + 1
        return self.chunk_of(file_id, 0) + self.grid(file_id).size // self.layout.chunk_size

    def size_bytes(self, file_id: int) -> int:
        """Return the bytes of a file's segments, without those that other shards send."""
        share = self.share(file_id)
        return self._sizes[file_id - self.first_file_id] if share is WHOLE else share.bytes_of(self.grid(file_id))

    def share(self, file_id: int) -> Share:
        """Return which segments of a file are sent: all of them, but for one that several shards of a tree send."""
        return self._shares.get(file_id - self.first_file_id, WHOLE)

    def shared_files(self) -> Iterator[tuple[range, Share]]:
        """Yield the chunks of each file that several shards send, and which of them this one sends."""
        for index, share in self._shares.items():
            yield self.chunks_of(self.first_file_id + index), share

    def is_bundle(self, chunk_id: int) -> bool:
        """Whether a chunk carries small files."""
        return chunk_id in self._unready_files

    def carried(self, chunk_id: int) -> tuple[Segment, ...]:
        """Return the segments that a chunk carries, in order: of a bundle, the files that are needed."""
        base, states = self.first_file_id, self._small_files
        segments = self.layout.segments(chunk_id - self.first_chunk)
        return tuple(
            [Segment(base + at, offset, size) for at, offset, size, _ in segments if states[at] in _IS_CARRIED]
        )

    # --- the answers for small files

    def need(self, files: range) -> tuple[list[int], list[int]]:
        """Note that these files have to be sent, as far as they are in this part.

        Return the large ones, and the chunks of the bundles that have become ready.
        """
        states, sizes, layout = self._small_files, self._sizes, self.layout
        unready, first = self._unready_files, self.first_file_id
        large, ready = [], []
        # A tree may have millions of files: no method of ours is called for each.
        for index in range(max(files.start, first) - first, min(files.stop, self.end_file_id) - first):
            if states[index] in _IS_OPEN:
                states[index] = NEEDED
                chunk_id = self.first_chunk + layout.first_chunks[index]
                self._carrying.add(chunk_id)
                unready[chunk_id] -= 1
                if not unready[chunk_id]:
                    ready.append(chunk_id)
            elif sizes[index] > layout.chunk_size:
                large.append(first + index)
        return large, ready

    def is_carrying(self, chunk_id: int) -> bool:
        """Whether a bundle has a file that was needed when it was answered: it may have been withdrawn since."""
        return chunk_id in self._carrying

    def do_without(self, file_id: int) -> int | None:
        """Note that a small file is not sent. Return the chunk of its bundle if the bundle has become ready."""
        index = file_id - self.first_file_id
        if self._small_files[index] not in _IS_OPEN:
            return None
        self._small_files[index] = NOT_NEEDED
        chunk_id = self.chunk_of(file_id, 0)
        self._unready_files[chunk_id] -= 1
        return None if self._unready_files[chunk_id] else chunk_id

    def begin_comparing(self, file_id: int) -> bool:
        """Note that the receiver holds a small file; return whether it has to be compared now."""
        index = file_id - self.first_file_id
        is_new = self._small_files[index] == UNANSWERED
        if is_new:
            self._small_files[index] = COMPARING
        return is_new

    def is_answered(self, file_id: int) -> bool:
        """Whether the receiver has answered a small file."""
        return self._small_files[file_id - self.first_file_id] != UNANSWERED


class StreamPart(Part):
    """The one part of a stream, with the chunks that were read so far."""

    def __init__(self, item: Item, stream: Stream) -> None:
        super().__init__(0, 0, [item], stream.chunk_size, last=True)
        self.stream = stream

    def grow(self) -> None:
        """Add the chunks that were read since."""
        self.bytes, self.chunks = self.stream.size, self.stream.chunks
        self.end_chunk = self.chunks

    def grid(self, file_id: int) -> Grid:
        """Return the segments so far."""
        del file_id
        return Grid(self.bytes, self.layout.chunk_size)

    def is_large(self, file_id: int) -> bool:
        """Each segment is a chunk."""
        del file_id
        return True

    def chunk_of(self, file_id: int, segment: int) -> int:
        """Segments are numbered as chunks are."""
        del file_id
        return segment

    def carried(self, chunk_id: int) -> tuple[Segment, ...]:
        """Return the segment of a chunk."""
        return self.stream.segments(chunk_id)
