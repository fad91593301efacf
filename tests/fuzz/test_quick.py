"""Fuzz in short: the first hundred thousand cases of a seed. The rest: `python -m tests.fuzz.run --help`."""

import contextlib
import tracemalloc
import zlib
from collections.abc import Callable

import pytest

from filestreamer.wire import limits
from filestreamer.wire import messages as m
from filestreamer.wire.codec import decode, encode
from filestreamer.wire.errors import RemoteProtocolError
from tests.fuzz.mutate import BYTES, GROUP, GROUP_END, VARINT, Field, assemble, parse, varint
from tests.fuzz.run import GROWTH_BYTES, run_block
from tests.fuzz.targets import TARGETS, run_case

CASES = 100_000
BLOCKS = 5


@pytest.mark.parametrize("block", range(BLOCKS))
def test_listed_errors_or_accepted(block: int) -> None:
    """Nothing but what is listed comes out of any decoder, opening or session; memory does not grow."""
    cases = CASES // BLOCKS
    result = run_block(0, block * cases, cases)
    assert result.found == []
    assert result.grown_bytes < GROWTH_BYTES
    assert {target for target, _ in result.ends} == set(TARGETS)
    assert result.ends["codec", "accepted"] > cases // 100, "nothing reaches behind the decoder"
    assert result.ends["handshake", "accepted"] > cases // 1000


def test_a_case_is_its_number() -> None:
    """What a failure names can be seen again, whatever ran before."""
    numbers = range(200)
    assert [run_case(5, number) for number in numbers] == [run_case(5, number) for number in numbers]
    assert [run_case(5, number) for number in numbers] != [run_case(6, number) for number in numbers]


def test_mutations_know_the_format() -> None:
    """A body that is taken apart and put together again is the same: else most mutations would be mere damage."""
    body = encode(m.ManifestPart(3, (m.Entry(b"a/b", m.EntryType.FILE, 1 << 40, 0o644, -1, uid=0),), True))
    fields = parse(body)
    assert fields is not None
    assert assemble(fields) == body


# --- the costliest frames there are


def repeated(number: int, content: bytes) -> Callable[[], bytes]:
    """Fill a frame with one message that has one field as often as fits."""

    def body() -> bytes:
        field = assemble([Field(number, BYTES, content)])
        return assemble([Field(17, BYTES, field * ((limits.FRAME_BYTES - 10) // len(field)))])

    return body


def details_with(number: int, content: bytes) -> Callable[[], bytes]:
    """Fill a frame with one entry, whose EntryDetails have one field as often as fits."""
    field = assemble([Field(number, BYTES, content)])
    numbers = [Field(column, VARINT, 1) for column in (3, 4, 5, 6)]
    entry = [Field(2, BYTES, b"f"), *numbers]

    def body() -> bytes:
        details = field * ((limits.FRAME_BYTES - 40) // len(field))
        return assemble([Field(17, BYTES, assemble([*entry, Field(9, BYTES, details), Field(10, VARINT, 1)]))])

    return body


def column_of(number: int) -> Callable[[], bytes]:
    """Fill a frame with one column, of the least value, packed; there is one path."""

    def body() -> bytes:
        column = Field(number, BYTES, b"\x01" * (limits.FRAME_BYTES - 40))
        return assemble([Field(17, BYTES, assemble([Field(2, BYTES, b"f"), column, Field(10, VARINT, 1)]))])

    return body


COSTLY: dict[str, Callable[[], bytes]] = {
    "paths of nothing": repeated(2, b""),
    "details of nothing": repeated(9, b""),
    "attributes of nothing": details_with(4, b""),
    "types of one path": column_of(3),
    "times of one path": column_of(6),
    "owners of one path": column_of(7),
    "nested groups": lambda: varint(7 << 3 | GROUP) * 30_000 + varint(7 << 3 | GROUP_END) * 30_000,
    "nested messages": lambda: nested(400),
    "acknowledgements": lambda: assemble([Field(33, BYTES, assemble([Field(2, BYTES, b"\x01" * 65_000)]))]),
    "ranges": lambda: assemble([Field(18, BYTES, assemble([Field(2, BYTES, b"\x18\x01")] * 16_000))]),
    "segments": lambda: assemble([Field(32, BYTES, assemble([Field(2, BYTES, b"\x18\x01")] * 16_000))]),
    "unknown fields": lambda: assemble([Field(99, VARINT, 1)] * 20_000),
    "the same kind again and again": lambda: assemble([Field(18, BYTES, b"")] * 20_000),
    "a long reason": lambda: assemble(
        [Field(48, BYTES, assemble([Field(1, VARINT, 1), Field(2, BYTES, b"x" * 65_000)]))]
    ),
}


def nested(depth: int) -> bytes:
    content = b""
    for _ in range(depth):
        content = varint(17 << 3 | BYTES) + varint(len(content)) + content
    return content


@pytest.mark.parametrize("costly", COSTLY)
def test_memory_for_one_frame(costly: str) -> None:
    """One frame of 64 KiB makes no more than a few MiB of values, and leaves none behind."""
    body = COSTLY[costly]()[: limits.FRAME_BYTES]
    tracemalloc.start()
    try:
        for _ in range(3):
            with contextlib.suppress(RemoteProtocolError):
                decode(body)
        left, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 16 << 20, f"{len(body)} bytes made {peak} bytes of values (body {zlib.crc32(body):08x})"
    assert left < 1 << 20
