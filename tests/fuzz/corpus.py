"""What mutations begin with: the frames of the golden vectors, and what else is read of strangers and disks."""

import functools
from typing import NamedTuple

from filestreamer.wire import messages as m
from filestreamer.wire.digests import segment_digest
from filestreamer.wire.framing import frame_of
from filestreamer.wire.grid import Grid
from receiver.disk.staging import ledger
from tests.golden.vectors import load, unpacked


class Corpus(NamedTuple):
    """Valid inputs, small ones apart from large ones, which cost a thousand times as much."""

    bodies: list[bytes]
    """Frame bodies up to SMALL_BYTES."""
    large_bodies: list[bytes]
    refused: list[bytes]
    """Frames and bodies that the protocol refuses."""
    control_up: list[bytes]
    """The bodies of a whole control conversation, after Welcome: what a sender says of it."""
    control_down: list[bytes]
    """What a receiver says of it."""
    ledgers: list[bytes]
    names: list[bytes]


SMALL_BYTES = 2048
BESIDE = (
    ("sender", 2, ("Withdrawn", "Zeros", "Connections")),
    ("receiver", 1, ("Declined", "Notice", "Zeros", "Verdicts")),
)
"""What the ends say beside the example, each behind so many of its messages."""


@functools.cache
def corpus() -> Corpus:
    """Load it once."""
    vectors = load("messages.json")["vectors"]
    bodies = [unpacked(vector["body"]) for vector in vectors]
    bodies += [unpacked(vector["header"]["body"]) for vector in load("chunks.json")["vectors"]]
    refused = load("refused.json")
    steps = [step for step in load("exchange.json")["steps"] if step["connection"] == "control"]
    opening = ("Greeting", "Hello", "Proof", "Welcome")
    said = {
        side: [unpacked(step["wire"])[12:] for step in steps if step["from"] == side and step["what"] not in opening]
        for side in ("sender", "receiver")
    }
    for side, at, kinds in BESIDE:
        said[side][at:at] = [unpacked(vector["body"]) for vector in vectors if vector["message"] in kinds]
    return Corpus(
        [body for body in bodies if len(body) <= SMALL_BYTES],
        [body for body in bodies if len(body) > SMALL_BYTES],
        [unpacked(each["wire"]) for each in refused["frames"]] + [unpacked(each["body"]) for each in refused["bodies"]],
        said["sender"],
        said["receiver"],
        [_ledger(size, chunk_size, step) for size, chunk_size, step in LEDGERS],
        NAMES,
    )


LEDGERS = [(0, 1, 1), (1, 1, 1), (13, 8, 1), (1000, 10, 1), (1000, 10, 3), (4096, 4096, 1), (100_001, 100, 2)]
NAMES = [
    *(b"f", b"hello.txt", b".filestreamer", b".filestreamer/token", b"..", b".", b"../f", b"a/../b", b"/etc/passwd"),
    *(b"x" * 255, b"x" * 256, b"\xff\xfe", "Übersicht".encode(), b"a\0b", b"a//b", b"-rf", b"\x1b[2J", b"con\n", b" "),
]


def _ledger(size: int, chunk_size: int, step: int) -> bytes:
    grid = Grid(size, chunk_size)
    records = [(index, segment_digest(index.to_bytes(8, "big"))) for index in range(0, grid.segments, step)]
    return ledger.encode_header(grid) + ledger.encode_records(records)


def wire(bodies: list[bytes]) -> bytes:
    """Put bodies on the wire, one frame after the other."""
    return b"".join(map(frame_of, bodies))


CLIENT_HELLO = bytes.fromhex(
    "16030100ee010000ea0303eac6cc39b35841df3fbf02d9be8b58fe4183691279be6ceb27709c74af1f8eb2207c3291522247f55ebdf0e2e6"
    "9be1a63804cf3d8d9f131441ce72f3f373559283000813021303130100ff010000990000000e000c0000096c6f63616c686f7374000b0004"
    "03000102000a00160014001d0017001e0019001801000101010201030104002300000016000000170000000d001e001c0403050306030807"
    "08080809080a080b080408050806040105010601002b0003020304002d00020101003300260024001d00207520670c4157c7fa72a60446db"
    "5d26f6da9fb3f92a74ebee7b3f70e35b97361f"
)
"""How a TLS 1.3 client begins, recorded once: random, so that a case stays what it was."""

HELLO = m.Hello(
    1, 1, bytes(range(16)), m.Role.CONTROL, 0, 8, bytes(range(16, 32)), True, ("shards", "trees"), ("trees",)
)
