"""One part of the manifest: its entries, the chunks that they make, and what the receiver answered for small files.

A part is what one ManifestPart lists. Its files are cut into chunks by themselves (`layout`). A file of several
segments is large, and each of its segments is a chunk; small files are bundled. `chunk_states` keeps the answers for
the chunks of large files. Those for small files, of which many are answered at once, are kept here. Their bundle is
ready to be sent once none of its files is unanswered, or still being compared.
"""

import itertools
from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
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

# For bytes.translate, which takes all files of a range at once: a tree may have millions of them.
_IS_UNANSWERED: Final = bytes(state == UNANSWERED for state in range(256))
_IS_OPEN: Final = bytes(state in (UNANSWERED, COMPARING) for state in range(256))
_AS_NEEDED: Final = bytes(NEEDED if _IS_OPEN[state] else state for state in range(256))
_AS_COMPARING: Final = bytes(COMPARING if state == UNANSWERED else state for state in range(256))
_AS_NOT_NEEDED: Final = bytes(NOT_NEEDED if _IS_OPEN[state] else state for state in range(256))


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
        # As `Item.sent_bytes`, without a call for each of maybe millions of files.
        self._sizes = [item.entry.size if item.identity is not None else 0 for item in items]
        self.layout = Layout(chunk_size, self._sizes)
        self._large_files = [index for index, size in enumerate(self._sizes) if size > chunk_size]
        """Files of several segments, by index."""
        self._shares: dict[int, Share] = {}
        """Files that other shards send, too, by index: which segments this one sends."""
        if shares is not None:
            for index in self._large_files:
                if (share := shares.share_of(items[index].entry)) is not WHOLE:
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
        layout = self.layout
        most = layout.chunk_size
        self._small_files = bytearray([UNANSWERED if 0 < size <= most else NOT_SMALL for size in self._sizes])
        self._unready_files = Counter(itertools.compress(layout.first_chunks, self._small_files))
        """For each bundle, by its number in this part: how many of its files are unanswered, or being compared."""
        self._carrying: set[int] = set()
        """Bundles that have a file that is needed, by their numbers in this part."""

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

    def has_segments(self, file_id: int) -> bool:
        """Whether an entry is a file of which bytes are sent."""
        return self._sizes[file_id - self.first_file_id] > 0

    def large_files(self, files: range) -> list[int]:
        """Return those of these files that are in this part and large."""
        first, large = self.first_file_id, self._large_files
        begin, end = bisect_left(large, files.start - first), bisect_left(large, files.stop - first)
        return [first + index for index in large[begin:end]]

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
        return chunk_id - self.first_chunk in self._unready_files

    def carried(self, chunk_id: int) -> tuple[Segment, ...]:
        """Return the segments that a chunk carries, in order: of a bundle, the files that are needed."""
        base, number = self.first_file_id, chunk_id - self.first_chunk
        if number in self._unready_files:
            states, sizes = self._small_files, self._sizes
            files = [index for index in self.layout.files(number) if states[index] == NEEDED]
            return tuple([Segment(base + index, 0, sizes[index]) for index in files])
        return tuple([segment._replace(file_id=base + segment.file_id) for segment in self.layout.segments(number)])

    # --- the answers for small files

    def need(self, files: range) -> list[int]:
        """Note that those of these files have to be sent that are in this part and small.

        Return the chunks of the bundles that have become ready.
        """
        bundles, ready = self._answer(self._indices(files), _AS_NEEDED)
        self._carrying.update(bundles)
        return ready

    def do_without(self, files: range) -> tuple[int, list[int]]:
        """Note that those of these files are not sent that are in this part and small.

        Return the bytes of those that were unanswered, and the chunks of the bundles that have become ready.
        """
        indices = self._indices(files)
        is_unanswered = self._small_files[indices].translate(_IS_UNANSWERED)
        unanswered_bytes = sum(itertools.compress(self._sizes[indices], is_unanswered))
        _, ready = self._answer(indices, _AS_NOT_NEEDED)
        return unanswered_bytes, ready

    def _indices(self, files: range) -> slice:
        """Return which of its entries are among these files."""
        first = self.first_file_id
        return slice(max(files.start - first, 0), max(files.stop - first, 0))

    def _answer(self, indices: slice, table: bytes) -> tuple[Collection[int], list[int]]:
        """Give these files, as far as they are open, the state that `table` says.

        Return the bundles of those that were open, and the chunks of the bundles that have become ready.
        """
        states = self._small_files[indices]
        self._small_files[indices] = states.translate(table)
        bundles = Counter(itertools.compress(self.layout.first_chunks[indices], states.translate(_IS_OPEN)))
        self._unready_files.subtract(bundles)
        return bundles, [self.first_chunk + bundle for bundle in bundles if not self._unready_files[bundle]]

    def is_carrying(self, chunk_id: int) -> bool:
        """Whether a bundle has a file that was needed when it was answered: it may have been withdrawn since."""
        return chunk_id - self.first_chunk in self._carrying

    def are_small(self, files: range) -> bool:
        """Whether these files, all of them in this part, have one segment each."""
        return NOT_SMALL not in self._small_files[self._indices(files)]

    def begin_comparing(self, files: range) -> list[int]:
        """Note that the receiver holds small files of this part; return those that have to be compared now."""
        indices = self._indices(files)
        states = self._small_files[indices]
        self._small_files[indices] = states.translate(_AS_COMPARING)
        return list(itertools.compress(files, states.translate(_IS_UNANSWERED)))


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
