"""The messages of the protocol as frozen native values (proto/README.md, "Messages").

What is decoded from a peer has the right types and is within the bounds of `limits`; whether it makes sense at this
moment is for `session`, and whether it fits the files of the transfer for the services.
"""

import enum
from typing import NamedTuple

from filestreamer.wire.errors import Code


class Role(enum.IntEnum):
    """What a connection is for."""

    CONTROL = 1
    DATA = 2


class EntryType(enum.IntEnum):
    """What a manifest entry is."""

    FILE = 1
    DIRECTORY = 2
    SYMLINK = 3
    STREAM = 4
    """A file whose size nobody knows before its end."""


class Phase(enum.IntEnum):
    """What the sender of a Progress is doing."""

    OFFERING = 1
    MOVING = 2
    SYNCING = 3
    WAITING = 4
    """Whoever reads what the receiver writes takes nothing at the moment."""


SENDER_STAGES = ("read", "digest", "send", "wait_ack", "limit")
RECEIVER_STAGES = ("receive", "digest", "write", "acknowledge")
"""What a data connection does with its time, in the order in which Progress tells it."""


class Verdict(enum.IntEnum):
    """What became of the chunks of a ChunkAck."""

    OK = 1
    DIGEST_MISMATCH = 2


class SkipKind(enum.IntEnum):
    """Why an entry is not moved, or not all of it."""

    VANISHED = 1
    """It was gone when it was to be looked at or read."""
    CHANGED = 2
    """It was another one when it was read than when it was listed."""
    UNREADABLE = 3
    """It could not be read, or its path is too long to be sent."""
    DECLINED = 4
    """The receiver could not make or replace it."""
    ATTRIBUTE = 5
    """It was moved, but for an attribute that the receiver could not set."""
    SPECIAL = 6
    """It is a FIFO, a socket or a device, which are never moved: no failure."""


class Greeting(NamedTuple):
    """Receiver, first frame: what it speaks and who it is."""

    lowest_version: int
    highest_version: int
    incarnation: bytes
    nonce: bytes
    token_required: bool
    features: tuple[str, ...] = ()
    """What the receiver knows (`filestreamer.wire.features`): sorted, each once, and names of later versions, too."""


class Hello(NamedTuple):
    """Sender, first frame: which transfer this connection belongs to."""

    version: int
    transfer_id: bytes
    role: Role
    connection_id: int
    connections: int
    nonce: bytes
    features: tuple[str, ...] = ()
    """What the sender knows, likewise."""


class Proof(NamedTuple):
    """Sender, after Hello where a token is required: that it knows the token."""

    mac: bytes


class Welcome(NamedTuple):
    """Receiver: come in; `mac` proves that it knows the token too (empty where none is required)."""

    mac: bytes


class Refusal(NamedTuple):
    """Receiver, instead of Welcome."""

    code: Code
    reason: str


class Abort(NamedTuple):
    """Either side, at any time after Welcome: the transfer, or this connection, is over."""

    code: Code
    reason: str


class Shard(NamedTuple):
    """This transfer is share `shard_index` of `shard_count` of its files."""

    shard_index: int
    shard_count: int


class Offer(NamedTuple):
    """Sender: how the files that follow are cut. Sizes in bytes."""

    chunk_size: int
    shard: Shard | None
    checksum: bool
    total_bytes: int


class Hole(NamedTuple):
    """A range of a file that is not sent and reads as zeros, in bytes."""

    offset: int
    length: int


class Xattr(NamedTuple):
    """One extended attribute."""

    name: bytes
    value: bytes


class Entry(NamedTuple):
    """One file, directory or symlink. `mode` is permission bits only; `hard_link_group` 0 is none."""

    path: bytes
    type: EntryType
    size: int
    mode: int
    mtime_ns: int
    uid: int | None = None
    gid: int | None = None
    link_target: bytes = b""
    hard_link_group: int = 0
    holes: tuple[Hole, ...] = ()
    xattrs: tuple[Xattr, ...] = ()


class ManifestPart(NamedTuple):
    """Sender: the entries `first_file_id`, `first_file_id + 1`, ..."""

    first_file_id: int
    entries: tuple[Entry, ...]
    last: bool


class FileRange(NamedTuple):
    """Whole files: as many as `files`, from `first_file_id`."""

    first_file_id: int
    files: int


class SegmentRange(NamedTuple):
    """Segments of one file, as many as `segments`; segment i starts at byte i * chunk_size."""

    file_id: int
    first_segment: int
    segments: int


class Needed(NamedTuple):
    """Receiver: certainly not held, so send it."""

    files: tuple[FileRange, ...]
    segments: tuple[SegmentRange, ...]
    window_bytes: int = 0
    """How far to send ahead of the first byte that is not acknowledged; 0 is no such bound."""


class Held(NamedTuple):
    """Receiver: re-hashed from disk, 16 bytes of digest for each segment from `first_segment`; send what differs."""

    file_id: int
    first_segment: int
    digests: bytes
    unchecked: tuple[FileRange, ...] = ()
    final: bool = False
    """The file lies under its final name: where one digest differs, all of it is needed."""


class Progress(NamedTuple):
    """Either side, every few seconds: the heartbeat."""

    phase: Phase
    acknowledged_bytes: int
    rehashed_bytes: int
    stage_microseconds: tuple[int, ...] = ()
    """What its data connections spent in each stage, all together: SENDER_STAGES or RECEIVER_STAGES, in that order."""


class LeftOutCount(NamedTuple):
    """How many entries were left out for a reason of one kind."""

    kind: SkipKind
    entries: int


class LeftOut(NamedTuple):
    """An entry that was left out: its path at the destination, as far as a frame has room for it, and why."""

    path: bytes
    kind: SkipKind
    reason: str


class Finish(NamedTuple):
    """Sender: every chunk is acknowledged or held."""

    chunks: int
    root_digest: bytes
    stream_bytes: int = 0
    left_out_counts: tuple[LeftOutCount, ...] = ()
    """What the sender did not offer, or withdrew, by kind."""
    left_out: tuple[LeftOut, ...] = ()
    """The first of these."""


class Withdrawn(NamedTuple):
    """Sender: these files are not going to be sent after all: unreadable, gone, or changed since they were listed."""

    file_ids: tuple[int, ...]


class Complete(NamedTuple):
    """Receiver: durable under the final name (or, for a shard whose siblings are missing, in staging)."""

    committed: bool


class Segment(NamedTuple):
    """Where part of a chunk belongs; bytes."""

    file_id: int
    offset: int
    length: int


class ChunkHeader(NamedTuple):
    """Sender: announces sum(length) raw bytes and then 16 raw bytes of digest for each segment."""

    chunk_id: int
    segments: tuple[Segment, ...]


class ChunkAck(NamedTuple):
    """Receiver: what became of these chunks."""

    verdict: Verdict
    chunk_ids: tuple[int, ...]


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
    | ChunkHeader
    | ChunkAck
    | Abort
)
