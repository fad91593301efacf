"""Every bound of the protocol in one place (proto/README.md, "Limits"). Sizes are bytes, times seconds.

The sizes of blocks at the end are no matter of the protocol: both services share them.
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
"""Length (4) and checksum (8) before each frame's body."""
OPENING_FRAME_BYTES: Final = 1 * KIB
"""Largest frame body before Welcome."""
FRAME_BYTES: Final = 64 * KIB
"""Largest frame body after Welcome."""

FEATURES_MAX: Final = 32
"""Features that a Greeting or a Hello names."""
FEATURE_NAME_BYTES: Final = 32

CHUNK_SIZE_DEFAULT: Final = 4 * MIB
CHUNK_SIZE_MAX: Final = 1 * GIB
SEGMENTS_PER_CHUNK: Final = 1024
CHUNKS_PER_FILE: Final = 1 << 23
CHUNKS_PER_FILE_COMFORTABLE: Final = 1 << 20
"""The default chunk size doubles until a file has no more chunks than this."""
FILE_SIZE_MAX: Final = (1 << 63) - 1

SHARDS_MAX: Final = 1024
"""Shards of a file: more than a receiver has connections for at once."""

CONNECTIONS_MAX: Final = 256
CONNECTIONS_AUTO: Final = 64
"""What a sender announces, and at most has, where nobody chose a number."""

PATH_BYTES: Final = 4096
NAME_BYTES: Final = 255
REASON_BYTES: Final = 512
ENTRIES_PER_PART: Final = 1024
MANIFEST_PARTS_UNANSWERED: Final = 4
DIGESTS_PER_HELD: Final = 2048
RANGES_PER_NEEDED: Final = 1024
ACKS_PER_FRAME: Final = 1024
FILES_PER_WITHDRAWN: Final = 1024
LEFT_OUT_PER_FINISH: Final = 100
LEFT_OUT_PATH_BYTES: Final = 256
LEFT_OUT_REASON_BYTES: Final = 256
HOLES_PER_FILE: Final = 1024
STAGES_PER_PROGRESS: Final = 16

WINDOW_BYTES: Final = 16 * MIB
"""Unacknowledged payload that a connection starts with."""
WINDOW_BYTES_MAX: Final = 256 * MIB
"""What it grows to where the path carries more."""
WINDOW_CHUNKS_MIN: Final = 2
WINDOW_CHUNKS_MAX: Final = 1024

AHEAD_CHUNKS: Final = 1024
"""How far beyond the first chunk that has not arrived a tree is dealt."""

OPENING_SECONDS: Final = 5.0
"""From accept to Welcome."""
HEARTBEAT_SECONDS: Final = 3.0
"""Between two Progress frames."""
DEAD_SECONDS: Final = 30.0
"""A peer that sent nothing for this long is dead."""
CLOSING_SECONDS: Final = 5.0
"""From SHUT_WR to the peer's end of stream."""
STRANGER_SECONDS: Final = 60.0
"""How long a transfer without progress keeps a name or a place that others want, whatever its own patience."""
REHASH_STEP_BYTES: Final = MIB
"""The least that a peer has to re-hash for it to count: it need not hash anything to say a number."""
SYNC_BYTES_PER_SECOND: Final = 4 * MIB
"""The slowest disk that a sync is waited for."""
SYNC_ENTRY_BYTES: Final = 64 * KIB
"""What an entry counts for in that: a name, a mode and times take a slow disk as long as so many bytes."""

SENDS_PER_CHUNK: Final = 4
"""A chunk that arrives wrong is sent again at most three times."""

# --- no peer sees these, and the protocol does not speak of them

BLOCK_BYTES: Final = 512 * KIB
"""The I/O unit inside a chunk: hashed while it is still in the CPU's cache."""
LARGE_BLOCK_BYTES: Final = 1980 * KIB
"""What is written at once at most, where the network brings it faster: with a frame it fits into a huge page."""
LARGE_BLOCK_CONNECTIONS: Final = 8
"""Connections of a transfer that have room for that. It takes more on long paths, where less comes at once."""
