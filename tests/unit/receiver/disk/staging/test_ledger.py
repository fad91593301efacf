"""The ledger, by example: what it looks like, what it claims, and what damage costs."""

import struct

import pytest
import xxhash

from filestreamer.wire.digests import root_digest
from filestreamer.wire.grid import Grid, Share
from receiver.disk.staging import ledger
from receiver.disk.staging.ledger import HEADER_BYTES, RECORD_BYTES, UNKNOWN_DIGEST, Claims, claims_on, decode

GRID = Grid(size=95, chunk_size=10)


def digest(index: int) -> bytes:
    return bytes([index % 251]) * 16


def written(*indices: int, grid: Grid = GRID) -> bytes:
    return ledger.encode_header(grid) + ledger.encode_records((index, digest(index)) for index in indices)


def claimed(claims: Claims) -> dict[int, bytes]:
    assert claims.claimed == len(list(claims.indices()))
    return {index: claims.digest(index) for index in claims.indices()}


def read(content: bytes) -> dict[int, bytes]:
    claims = decode(content)
    assert claims is not None
    return claimed(claims)


def test_its_bytes() -> None:
    """They stay in destinations from one version to the next."""
    header = b"FSLEDGR1" + struct.pack(">QQ", 95, 10)
    record = struct.pack(">Q", 7) + digest(7)
    expected = header + xxhash.xxh3_64_digest(header) + record + xxhash.xxh3_64_digest(record)
    assert expected == written(7)
    assert (HEADER_BYTES, RECORD_BYTES) == (32, 32)


def test_round_trip() -> None:
    claims = decode(written(3, 1, 9))
    assert claims is not None
    assert claims.grid == GRID
    assert claimed(claims) == {1: digest(1), 3: digest(3), 9: digest(9)}
    assert claims.digest(0) == UNKNOWN_DIGEST


def test_nothing_written_yet() -> None:
    assert read(written()) == {}


def test_a_later_record_counts() -> None:
    assert read(written(1) + ledger.encode_records([(1, digest(8))])) == {1: digest(8)}


def test_segments_that_the_grid_does_not_have() -> None:
    assert read(written(9, 10, 1 << 40)) == {9: digest(9)}


@pytest.mark.parametrize("content", [b"", b"FSLEDGR1", written()[:-1], b"x" + written(1)[1:], bytes(200)], ids=range(5))
def test_without_a_sound_header_there_are_no_claims(content: bytes) -> None:
    assert decode(content) is None


@pytest.mark.parametrize(
    ("magic", "size", "chunk_size"),
    [
        (b"FSLEDGR2", 95, 10),
        (b"FSLEDGR1", 95, 0),
        (b"FSLEDGR1", 95, (1 << 30) + 1),
        (b"FSLEDGR1", 1 << 63, 1 << 30),
        (b"FSLEDGR1", 1 << 40, 1),
    ],
)
def test_headers_that_no_receiver_wrote(magic: bytes, size: int, chunk_size: int) -> None:
    """With a checksum to match: nothing is allocated from what they say."""
    header = magic + struct.pack(">QQ", size, chunk_size)
    assert decode(header + xxhash.xxh3_64_digest(header)) is None


def test_a_damaged_record_costs_itself() -> None:
    content = bytearray(written(0, 1, 2))
    content[HEADER_BYTES + RECORD_BYTES + 9] ^= 1
    assert read(bytes(content)) == {0: digest(0), 2: digest(2)}


def test_a_torn_record_costs_itself() -> None:
    assert read(written(0, 1, 2)[:-1]) == {0: digest(0), 1: digest(1)}


def test_exact() -> None:
    """Only then it may be appended to; else it is written anew."""
    claims = decode(written(0, 1))
    assert claims is not None
    assert ledger.is_exact(len(written(0, 1)), claims, GRID)
    assert not ledger.is_exact(len(written(0, 1)) + 5, claims, GRID), "a torn record behind"
    assert not ledger.is_exact(len(written(0, 1, 1)), claims, GRID), "a record twice"
    assert not ledger.is_exact(len(written(0, 1)), claims, Grid(95, 20))


@pytest.mark.parametrize(
    ("indices", "chunk_size", "expected"),
    [
        ([0, 1, 2, 3], 20, [0, 1]),
        ([1, 2, 3], 20, [1]),
        ([8, 9], 20, [4]),
        ([9], 20, []),
        ([0], 5, [0, 1]),
        ([9], 5, [18]),
        ([0, 1, 2], 15, [0, 1]),
        ([0, 2], 15, []),
        (list(range(10)), 1000, [0]),
        (list(range(9)), 1000, []),
        ([4], 1, list(range(40, 50))),
    ],
)
def test_on_another_chunk_size(indices: list[int], chunk_size: int, expected: list[int]) -> None:
    claims = decode(written(*indices))
    assert claims is not None
    assert claimed(claims_on(claims, Grid(95, chunk_size))) == dict.fromkeys(expected, UNKNOWN_DIGEST)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (195, {0: digest(0), 8: digest(8)}),
        (85, {0: digest(0), 8: UNKNOWN_DIGEST}),
        (90, {0: digest(0), 8: digest(8)}),
        (5, {0: UNKNOWN_DIGEST}),
        (0, {}),
    ],
)
def test_on_another_size(size: int, expected: dict[int, bytes]) -> None:
    """A file that grew or shrank: what lies in both at the same place is claimed, unknown where its length changed."""
    claims = decode(written(0, 8, 9))
    assert claims is not None
    assert claimed(claims_on(claims, Grid(size, 10))) == expected


# --------------------------------------------------------------------------------------------------------------- seals

SHARE = Share(1, 3)
MTIME_NS = -5


def sealed(*records: tuple[int, bytes], share: Share = SHARE, grid: Grid = GRID) -> bytes:
    """Write a ledger of share 1/3 (segments 1, 4, 7), sealed, and of what follows it."""
    of_share = [(index, digest(index)) for index in (1, 4, 7)]
    seal = ledger.seal_digest(grid, MTIME_NS, share, root_digest(digest(index) for index in (1, 4, 7)))
    return ledger.encode_header(grid) + ledger.encode_records([*of_share, ledger.seal_record(share, seal), *records])


def is_sealed(content: bytes, share: Share = SHARE, mtime_ns: int = MTIME_NS) -> bool:
    claims = decode(content)
    assert claims is not None
    return claims.is_sealed(share, mtime_ns)


def test_the_bytes_of_a_seal() -> None:
    """They stay in destinations from one version to the next."""
    covered = struct.pack(">QQqQQ", 95, 10, MTIME_NS, 1, 3) + bytes(range(16))
    seal = ledger.seal_digest(GRID, MTIME_NS, SHARE, bytes(range(16)))
    assert seal == xxhash.xxh3_128_digest(covered)
    assert ledger.seal_record(SHARE, seal) == ((1 << 63) + (3 << 32) + 1, seal)


def test_a_share_that_was_finished() -> None:
    assert is_sealed(sealed())
    assert is_sealed(sealed((0, digest(0)), (2, digest(2))))
    assert not is_sealed(sealed(), share=Share(0, 3))
    assert not is_sealed(written(1, 4, 7))


def test_a_seal_is_of_one_source_and_one_content() -> None:
    assert not is_sealed(sealed(), mtime_ns=MTIME_NS + 1)
    assert not is_sealed(sealed((4, digest(5))))  # written again since
    assert is_sealed(sealed((4, digest(5)), (4, digest(4))))
    damaged = bytearray(sealed())
    damaged[HEADER_BYTES + RECORD_BYTES] ^= 1  # the record of segment 4
    assert not is_sealed(bytes(damaged))


@pytest.mark.parametrize("grid", [Grid(95, 5), Grid(95, 20), Grid(96, 10)])
def test_a_seal_ends_with_its_grid(grid: Grid) -> None:
    claims = decode(sealed())
    assert claims is not None
    assert not claims_on(claims, grid).seals


def test_seals_of_another_count_end_with_the_first_new_one() -> None:
    claims = decode(sealed(ledger.seal_record(Share(0, 2), bytes(16))))
    assert claims is not None
    assert claims.seals == {Share(0, 2): bytes(16)}


@pytest.mark.parametrize("share", [Share(3, 3), Share(0, 0), Share(0, 1025), Share(1 << 31, (1 << 31) - 1)])
def test_seals_that_nobody_writes(share: Share) -> None:
    claims = decode(sealed(ledger.seal_record(share, bytes(16))))
    assert claims is not None
    assert list(claims.seals) == [SHARE]


def test_a_ledger_with_seals_that_is_written_anew() -> None:
    claims = decode(sealed((1, digest(1))))
    assert claims is not None
    again = ledger.encode_header(GRID) + ledger.encode_records(claims.records())
    assert ledger.is_exact(len(again), claims, GRID)
    assert is_sealed(again)
    assert not ledger.is_exact(len(sealed((1, digest(1)))), claims, GRID)


def test_digests_that_mean_nothing_today_are_not_kept() -> None:
    """Another chunk size: a byte for each segment that was. The same one, another size: no more than both have."""
    content = written(0, 1, 2, 8, 9)
    claims = decode(content, today=Grid(95, 20))
    assert claims is not None
    assert (len(claims.present), len(claims.digests)) == (10, 0)
    assert claimed(claims_on(claims, Grid(95, 20))) == {0: UNKNOWN_DIGEST, 4: UNKNOWN_DIGEST}
    claims = decode(content, today=Grid(20, 10))
    assert claims is not None
    assert (len(claims.present), len(claims.digests)) == (10, 32)
    assert claimed(claims_on(claims, Grid(20, 10))) == {0: digest(0), 1: digest(1)}
    assert decode(content, today=GRID) == decode(content)
