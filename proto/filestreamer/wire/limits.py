"""Every limit of the protocol (proto/README.md, "Limits"). Sizes in bytes, times in seconds.

The block sizes at the end are not part of the protocol: both services share them.
"""

from typing import Final

VERSION: Final = 1
"""The one protocol version that this code speaks."""

DEFAULT_PORT: Final = 7800

KIB: Final = 1024
MIB: Final = 1024 * KIB
GIB: Final = 1024 * MIB

ID_BYTES: Final = 16
"""transfer_id, incarnation and nonce."""
DIGEST_BYTES: Final = 16
"""XXH3-128 of one segment."""
MAC_BYTES: Final = 32
"""HMAC-SHA-256."""

FRAME_HEADER_BYTES: Final = 12
"""Before the body of each frame: length (4) and checksum (8)."""
OPENING_FRAME_BYTES: Final = 1 * KIB
"""Largest frame body before Welcome."""
FRAME_BYTES: Final = 64 * KIB
"""Largest frame body after Welcome."""

FEATURES_MAX: Final = 32
"""Features that a Greeting or a Hello names."""
FEATURE_NAME_BYTES: Final = 32
JOB_NAME_BYTES: Final = 63
"""The name of a job: the most that Kubernetes takes for a label."""

CHUNK_SIZE_DEFAULT: Final = 4 * MIB
CHUNK_SIZE_MAX: Final = 1 * GIB
SEGMENTS_PER_CHUNK: Final = 1024
CHUNKS_PER_RUN: Final = 256
RUN_BYTES: Final = 512 * KIB
"""The most payload of a run of chunks."""
CHUNKS_PER_FILE: Final = 1 << 23
CHUNKS_PER_FILE_COMFORTABLE: Final = 1 << 20
"""Where nobody chose a chunk size, it doubles until a file has at most this many chunks."""
FILE_SIZE_MAX: Final = (1 << 63) - 1

SHARDS_MAX: Final = 1024
"""Shards of one file; more than a receiver has connections for at the same time."""

CONNECTIONS_MAX: Final = 256
CONNECTIONS_AUTO: Final = 64
"""The most connections of a sender that finds their number by itself; its Hello announces this number."""

PATH_BYTES: Final = 4096
NAME_BYTES: Final = 255
REASON_BYTES: Final = 512
ENTRIES_PER_PART: Final = 1024
MANIFEST_PARTS_UNANSWERED: Final = 4
DIGESTS_PER_HELD: Final = 2048
RANGES_PER_NEEDED: Final = 1024
"""Ranges of a kind in a Needed, a Held or a Zeros."""
ACKS_PER_FRAME: Final = 1024
FILES_PER_WITHDRAWN: Final = 1024
ENTRIES_PER_DECLINED: Final = 512
TEXTS_PER_NOTICE: Final = 64
VERDICTS_PER_FRAME: Final = 64
DELETION_ROOTS_MAX: Final = 1024
DELETION_EXCLUDES_MAX: Final = 1024
LEFT_OUT_PER_FINISH: Final = 100
LEFT_OUT_PATH_BYTES: Final = 256
LEFT_OUT_REASON_BYTES: Final = 256
XATTRS_BYTES: Final = MIB
"""Names and values of the extended attributes of an entry."""
XATTRS_PER_ENTRY: Final = 1024
XATTR_NAME_BYTES: Final = 255
RUNS_PER_CHUNK: Final = 8192
"""Runs of data and of hole that the header of a chunk lists: with SEGMENTS_PER_CHUNK segments they fit a frame."""
STAGES_PER_PROGRESS: Final = 16

WINDOW_BYTES: Final = 16 * MIB
"""Unacknowledged payload that a connection starts with."""
WINDOW_BYTES_MAX: Final = 256 * MIB
"""The most unacknowledged payload of a connection; the window grows to it where the path carries more."""
WINDOW_CHUNKS_MIN: Final = 2
WINDOW_CHUNKS_MAX: Final = 1024

AHEAD_CHUNKS: Final = 1024
"""How many chunks behind the first one that is not acknowledged a tree may send."""

OPENING_SILENCE_SECONDS: Final = 10.0
"""How long either end waits for the next byte of an opening. A round-trip may take seconds: satellites, full queues."""
OPENING_SECONDS: Final = 30.0
"""From accept to all of Hello and Proof, however the bytes come."""
HEARTBEAT_SECONDS: Final = 3.0
"""Between two Progress frames."""
DEAD_SECONDS: Final = 30.0
"""A peer that has sent nothing for this long counts as dead."""
CLOSING_SECONDS: Final = 5.0
"""From SHUT_WR to the peer's end of stream."""
STRANGER_SECONDS: Final = 60.0
"""How long a transfer without progress keeps a name, or its place in the receiver, that another transfer needs."""
REHASH_STEP_BYTES: Final = MIB
"""The least growth of Progress.rehashed_bytes that counts as progress: the number costs a peer nothing to claim."""
SYNC_BYTES_PER_SECOND: Final = 4 * MIB
"""The speed of the slowest disk whose sync is waited for."""
SYNC_ENTRY_BYTES: Final = 64 * KIB
"""Bytes that an entry counts as in that: a slow disk takes as long for a name, a mode and times."""

SENDS_PER_CHUNK: Final = 4
"""How often a chunk is sent at most: the first time, and three times after a wrong digest."""

# --- sizes that no peer sees: they are not part of the protocol

BLOCK_BYTES: Final = 512 * KIB
"""The unit of I/O inside a chunk; small enough to be hashed while it is in the CPU's cache."""
LARGE_BLOCK_BYTES: Final = 1980 * KIB
"""The most that is written at once, where the network is faster than the disk; with a frame it fits a huge page."""
LARGE_BLOCK_CONNECTIONS: Final = 8
"""How many connections of a transfer have a buffer of that size. Many connections mean a long path, where less
arrives at once."""
