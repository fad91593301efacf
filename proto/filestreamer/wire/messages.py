"""The messages of the protocol as named tuples (proto/README.md, "Messages").

A message that `codec` has decoded has the right types and is within `limits`. `session` checks whether it is legal at
this moment, and the services check whether it fits the files of the transfer.
"""

import enum
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from filestreamer.wire.errors import Code


class Role(enum.IntEnum):
    """What a connection is for."""

    CONTROL = 1
    DATA = 2


class EntryType(enum.IntEnum):
    """The type of a manifest entry."""

    FILE = 1
    DIRECTORY = 2
    SYMLINK = 3
    STREAM = 4
    """A file whose size is not known before its end, such as standard input."""
    KEPT = 5
    """What exists at the source and is not moved: a Deletion keeps what has this name at the destination."""


class Existing(enum.IntEnum):
    """What becomes of a file or symlink of the destination that has the name of an entry, and differs from it."""

    REPLACE = 1
    SKIP = 2
    """It is left as it is."""
    NEWER = 3
    """It is replaced only if the entry has the later mtime; else it is left as it is."""
    REFUSE = 4
    """It is left as it is, and the entry is declined."""


class Phase(enum.IntEnum):
    """What the end that sends a Progress is doing."""

    OFFERING = 1
    MOVING = 2
    SYNCING = 3
    WAITING = 4
    """At the receiver, the reader of the pipe takes nothing at the moment; at the sender, the stream brings nothing."""


SENDER_STAGES = ("read", "digest", "send", "wait_ack", "limit")
RECEIVER_STAGES = ("receive", "digest", "write", "acknowledge", "limit")
"""The stages among which the time of data connections is divided, in the order of Progress.stage_microseconds."""


class Verdict(enum.IntEnum):
    """The receiver's verdict on the chunks in a ChunkAck."""

    OK = 1
    DIGEST_MISMATCH = 2


class Standing(enum.IntEnum):
    """How an entry stands at the destination, in a dry run."""

    NEW = 1
    """Nothing has its name."""
    DIFFERS = 2
    """It would be replaced."""
    SAME = 3
    """Nothing would be sent."""
    LEFT = 4
    """It differs, and would be left as it is (`Existing`)."""
    EXISTING = 5
    """It differs, and may not be replaced."""
    DECLINED = 6
    """It could not be made or replaced."""
    EXTRA = 7
    """It is not in the manifest, and would be removed (`Deletion`)."""


class SkipKind(enum.IntEnum):
    """Why an entry is not moved, or not completely."""

    VANISHED = 1
    """It was gone when the sender wanted to list or read it."""
    CHANGED = 2
    """It has changed between being listed and being read."""
    UNREADABLE = 3
    """It can't be read, or its path is too long to be sent."""
    DECLINED = 4
    """The receiver can't create or replace it."""
    ATTRIBUTE = 5
    """It was moved, but the receiver can't set one of its attributes."""
    SPECIAL = 6
    """It is a FIFO, a socket or a device, which are never moved. This is not a failure."""
    EXISTING = 7
    """It exists at the destination, and may not be replaced: it is left as it is."""


RECEIVER_KINDS = (SkipKind.DECLINED, SkipKind.ATTRIBUTE, SkipKind.EXISTING)
"""The kinds that the receiver finds, and tells in Declined."""


class Greeting(NamedTuple):
    """Receiver, first frame: the protocol versions that it speaks, its incarnation, whether it requires a token."""

    lowest_version: int
    highest_version: int
    incarnation: bytes
    nonce: bytes
    token_required: bool
    features: tuple[str, ...] = ()
    """The receiver's features (`filestreamer.wire.features`): sorted, each once; may have names of later versions."""
    role: Role | None = None
    """What a receiver that dials dials this connection for; None where it was dialled."""


class Hello(NamedTuple):
    """Sender, its first frame: the transfer and the role of this connection."""

    lowest_version: int
    highest_version: int
    transfer_id: bytes
    role: Role
    connection_id: int
    connections: int
    nonce: bytes
    can_prove: bool = False
    """Whether a Proof follows if the Greeting asks for one."""
    features: tuple[str, ...] = ()
    """The sender's features, likewise."""
    needs: tuple[str, ...] = ()
    """Those of them without which this transfer can't be moved."""
    job: str = ""
    """The job that this transfer is part of (`--job`); empty where it is of none."""


class Proof(NamedTuple):
    """Sender, where a token is required: proves that it knows the token. After Hello or, if it was dialled, Welcome."""

    mac: bytes


class Welcome(NamedTuple):
    """Receiver: accepts the connection; `mac` proves that it knows the token, too (empty where none is required)."""

    mac: bytes
    job: str = ""
    """The job that the receiver takes the transfer for: its own or, where it has none, that of Hello."""


class Refusal(NamedTuple):
    """Either end, instead of a frame of the opening: refuses the connection, and says why."""

    code: Code
    reason: str


class Abort(NamedTuple):
    """Either end, at any time after Welcome: ends the transfer or this connection, and says why."""

    code: Code
    reason: str


class Shard(NamedTuple):
    """This transfer is share `shard_index` of `shard_count` of its files."""

    shard_index: int
    shard_count: int
    tree: bool = False
    """Whether this is a shard of a tree, which `Hello.job` groups; else it is a share of a single file."""


class Deletion(NamedTuple):
    """What the manifest does not list is to be removed below these directories, once everything else is in place."""

    roots: tuple[bytes, ...]
    """Directories that the sender's user named, as paths at the destination; b"" is the destination itself."""
    excludes: tuple[bytes, ...] = ()
    """Patterns (`filestreamer.wire.patterns`), relative to each root: what matches one is kept."""


class Offer(NamedTuple):
    """Sender: how the files in the manifest that follows are cut into chunks. Sizes in bytes."""

    chunk_size: int
    shard: Shard | None
    checksum: bool
    total_bytes: int
    existing: Existing = Existing.REPLACE
    delete: Deletion | None = None
    dry_run: bool = False
    """Whether the receiver is only asked: it writes nothing, and no chunk is sent."""
    xattrs: bool = False
    """Whether the entries have all extended attributes of their sources: others are removed."""
    again: bool = False
    """Whether the sender goes by what the receiver has answered on an earlier control connection."""


class Xattr(NamedTuple):
    """One extended attribute."""

    name: bytes
    value: bytes


class Entry(NamedTuple):
    """One file, directory or symlink.

    `mode` has the permission bits, setuid, setgid and sticky. Files with the same `hard_link_group` are one file; 0 is
    none.
    """

    path: bytes
    type: EntryType
    size: int
    mode: int
    mtime_ns: int
    uid: int | None = None
    gid: int | None = None
    link_target: bytes = b""
    hard_link_group: int = 0
    xattrs: tuple[Xattr, ...] = ()
    data_bytes: int | None = None
    """A hint: how many bytes of a file its source stores, which is fewer than `size` for a sparse one; None: all."""

    @property
    def is_no_tree(self) -> bool:
        """Whether a manifest of this entry alone is no tree: a FILE or STREAM in the destination itself."""
        return self.type in (EntryType.FILE, EntryType.STREAM) and b"/" not in self.path


class ManifestPart(NamedTuple):
    """Sender: part of the manifest, the entries from `first_file_id` on."""

    first_file_id: int
    entries: tuple[Entry, ...]
    last: bool
    more_xattrs: tuple[Xattr, ...] = ()
    """Of the last entry of the part before; such a part has no entries (`filestreamer.wire.xattr_parts`)."""
    xattrs_continue: bool = False
    """Whether more of the attributes of the last entry follow."""


class FileRange(NamedTuple):
    """Whole files: `files` of them, from `first_file_id` on."""

    first_file_id: int
    files: int


class SegmentRange(NamedTuple):
    """Segments of one file: `segments` of them, from `first_segment` on; segment i starts at byte i * chunk_size."""

    file_id: int
    first_segment: int
    segments: int


class Needed(NamedTuple):
    """Receiver: files and segments that it does not have, to be sent."""

    files: tuple[FileRange, ...]
    segments: tuple[SegmentRange, ...]
    window_bytes: int = 0
    """How far the sender may send ahead of the first byte that is not acknowledged; 0: as far as it wants."""


class Held(NamedTuple):
    """Receiver: 16 bytes of digest for each segment that it has, from `first_segment` on; send those that differ.

    Where there are `files`, which have one segment each, it is a digest for each of them. `unchecked` are files that it
    takes for equal because of size and mtime.
    """

    file_id: int
    first_segment: int
    digests: bytes
    unchecked: tuple[FileRange, ...] = ()
    final: bool = False
    """Whether the segments are of a file under its final name: where one digest differs, the whole file is needed."""
    left: tuple[FileRange, ...] = ()
    """Files that exist and differ, and are left as they are (`Offer.existing`)."""
    files: tuple[FileRange, ...] = ()


class Progress(NamedTuple):
    """Either end, every few seconds: the heartbeat."""

    phase: Phase
    acknowledged_bytes: int
    rehashed_bytes: int
    stage_microseconds: tuple[int, ...] = ()
    """The time of all data connections in each stage of SENDER_STAGES or RECEIVER_STAGES, in this order."""
    deleted: int = 0
    """Entries that the receiver has removed so far (`Offer.delete`)."""
    under_way_bytes: int = 0
    """Bytes that the receiver has read of chunks that are not done."""
    starved: tuple[int, ...] = ()
    """Ids of data connections that the receiver reads, over which no byte came for HEARTBEAT_SECONDS, and on which it
    owes no answer to a chunk."""
    passed_over: int = 0
    """Entries that the sender has found so far and does not list, as a filter or another shard has them."""


class LeftOutCount(NamedTuple):
    """How many entries were not sent, for reasons of one kind."""

    kind: SkipKind
    entries: int


class LeftOut(NamedTuple):
    """An entry that was not sent, and why. The path is that at the destination, and may be cut."""

    path: bytes
    kind: SkipKind
    reason: str


class Finish(NamedTuple):
    """Sender: every chunk is acknowledged or held, or (`ahead`) was sent; the root digest over all of them."""

    chunks: int
    root_digest: bytes
    stream_bytes: int = 0
    left_out_counts: tuple[LeftOutCount, ...] = ()
    """Entries that the sender did not offer, or withdrew, by kind."""
    left_out: tuple[LeftOut, ...] = ()
    """The first of these entries."""
    ahead: bool = False
    """Whether chunks are still under way: then it counts when the last of them is acknowledged."""
    walk_digest: bytes = b""
    """Of a shard of a tree: the digest of all that its walk found (`tree_shares.WalkDigest`)."""


class Withdrawn(NamedTuple):
    """Sender: files that it offered and can't send, as they are unreadable, gone, or changed since they were listed."""

    file_ids: tuple[int, ...]


class DeclinedEntry(NamedTuple):
    """An entry that the receiver skips, or whose attribute it can't set: the kind is one of RECEIVER_KINDS."""

    file_id: int
    kind: SkipKind
    reason: str
    """Without the path."""
    path: bytes = b""
    """That at the destination; may be cut."""


class Declined(NamedTuple):
    """Receiver: entries that it can't make, replace or link. The sender skips them, and goes on with all others."""

    entries: tuple[DeclinedEntry, ...]


class Notice(NamedTuple):
    """Receiver: warnings for both users. They are no failures."""

    texts: tuple[str, ...]


class Zeros(NamedTuple):
    """Sender: these segments of large files are zeros, and are not sent. Receiver: by now they are zeros here, too."""

    segments: tuple[SegmentRange, ...]


class Complete(NamedTuple):
    """Receiver: everything is durable: under final names if `committed`, else in staging (a shard); or a dry run."""

    committed: bool
    deleted: int = 0
    """Entries of the destination that were removed (`Offer.delete`)."""
    undeletable: int = 0
    """Entries that were to be removed, and could not be."""
    left: int = 0
    """Entries that exist and differ, and were left as they are (`Offer.existing`)."""
    shards_finished: int = 0
    """Of a shard of a tree: how many shards of its job are finished, this one included."""
    job_files: int = 0
    """Files of the shards that are finished."""
    job_bytes: int = 0
    """Bytes of the shards that are finished."""


class EntryVerdict(NamedTuple):
    """How entries stand: `files` of them from `file_id` on or, of an EXTRA, the one with this path."""

    standing: Standing
    file_id: int = 0
    files: int = 1
    path: bytes = b""
    reason: str = ""


class Verdicts(NamedTuple):
    """Receiver: how entries of the manifest stand at the destination, in a dry run."""

    entries: tuple[EntryVerdict, ...]


class Connections(NamedTuple):
    """Sender, where the receiver dials: how many data connections it wants from now on."""

    wanted: int


class Segment(NamedTuple):
    """Part of a chunk: `length` bytes at `offset` of a file."""

    file_id: int
    offset: int
    length: int
    runs: tuple[int, ...] = ()
    """Lengths of data and of hole in turns, data first; () where all of it is data. Holes are zeros, and not sent."""

    @property
    def payload_bytes(self) -> int:
        """Bytes that are sent: all but those of holes."""
        return sum(self.runs[::2]) if self.runs else self.length

    def pieces(self) -> Iterator[tuple[int, int, bool]]:
        """Yield what it consists of, in order: the range [start, end) of bytes of the file, and whether it is data."""
        at = self.offset
        for number, length in enumerate(self.runs or (self.length,)):
            if length:
                yield at, at + length, number % 2 == 0
            at += length


class ChunkHeader(NamedTuple):
    """Sender: announces a chunk. The bytes of all segments follow the frame, and then 16 bytes of digest for each.

    Or it announces a run: so many chunks of one file, each of one segment as long as the first one, which it lists.
    """

    chunk_id: int
    segments: tuple[Segment, ...]
    chunks: int = 1
    stride: int = 1
    """From each chunk_id of a run to the next one, and as many segments from each of its segments to the next one."""

    @property
    def chunk_ids(self) -> range:
        """The chunks that it announces."""
        return range(self.chunk_id, self.chunk_id + self.chunks * self.stride, self.stride)

    def run_segment(self, index: int) -> Segment:
        """Return the segment of one chunk of a run."""
        file_id, offset, length, _ = self.segments[0]
        return Segment(file_id, offset + index * self.stride * length, length)

    @property
    def all_segments(self) -> Sequence[Segment]:
        """The segments that it announces: of a run, one for each of its chunks."""
        return self.segments if self.chunks == 1 else [self.run_segment(index) for index in range(self.chunks)]

    @property
    def length(self) -> int:
        """Bytes of all segments, those of holes included."""
        return sum([segment.length for segment in self.segments]) * self.chunks


class ChunkRange(NamedTuple):
    """The chunks `first_chunk_id`, `first_chunk_id` + `stride`, ...: so many."""

    first_chunk_id: int
    chunks: int
    stride: int

    @property
    def chunk_ids(self) -> range:
        """The chunks."""
        return range(self.first_chunk_id, self.first_chunk_id + self.chunks * self.stride, self.stride)


class ChunkAck(NamedTuple):
    """Receiver: acknowledges chunks, or asks for them again."""

    verdict: Verdict
    chunk_ids: tuple[int, ...]
    ranges: tuple[ChunkRange, ...] = ()
    """Further chunks: those of runs."""

    @classmethod
    def of(cls, verdict: Verdict, runs: Sequence[range]) -> "ChunkAck":
        """Acknowledge the chunks of runs, of which some may be a single chunk."""
        ranges = [ChunkRange(run[0], len(run), run.step) for run in runs if len(run) > 1]
        return cls(verdict, tuple([run[0] for run in runs if len(run) == 1]), tuple(ranges))


Message = (
    Greeting
    | Hello
    | Proof
    | Welcome
    | Refusal
    | Offer
    | ManifestPart
    | Needed
    | Held
    | Progress
    | Finish
    | Complete
    | Withdrawn
    | Declined
    | Notice
    | Verdicts
    | Connections
    | Zeros
    | ChunkHeader
    | ChunkAck
    | Abort
)
