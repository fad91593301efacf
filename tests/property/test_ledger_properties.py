"""A ledger that is torn or damaged anywhere claims less, never anything else; another grid claims no other bytes."""

from hypothesis import given
from hypothesis import strategies as st

from filestreamer.wire.grid import Grid
from receiver.disk.staging import ledger
from receiver.disk.staging.ledger import HEADER_BYTES, RECORD_BYTES, UNKNOWN_DIGEST, Claims, claims_on, decode

GRIDS = st.builds(Grid, size=st.integers(0, 200), chunk_size=st.integers(1, 30))
DIGESTS = st.binary(min_size=16, max_size=16).filter(lambda digest: digest != UNKNOWN_DIGEST)
Records = list[tuple[int, bytes]]


@st.composite
def ledgers(draw: st.DrawFn) -> tuple[Grid, Records]:
    """Make a grid, and records in any order, some segments more than once."""
    grid = draw(GRIDS.filter(lambda grid: grid.segments > 0))
    records = draw(st.lists(st.tuples(st.integers(0, grid.segments - 1), DIGESTS), max_size=30))
    return grid, records


def content(grid: Grid, records: Records) -> bytes:
    return ledger.encode_header(grid) + ledger.encode_records(records)


def claimed(claims: Claims) -> dict[int, bytes]:
    return {index: claims.digest(index) for index in claims.indices()}


def check_subset(damaged: bytes, grid: Grid, records: Records) -> None:
    claims = decode(damaged)
    if claims is not None:
        assert grid == claims.grid
        assert claimed(claims).items() <= set(records)


@given(ledgers())
def test_round_trip(made: tuple[Grid, Records]) -> None:
    grid, records = made
    claims = decode(content(grid, records))
    assert claims is not None
    assert (grid, dict(records)) == (claims.grid, claimed(claims))
    assert claims.claimed == len(dict(records))
    assert ledger.is_exact(len(content(grid, records)), claims, grid) == (len(records) == len(dict(records)))


@given(ledgers(), st.data())
def test_torn(made: tuple[Grid, Records], data: st.DataObject) -> None:
    """Cut anywhere: the whole records before the cut, and no others."""
    grid, records = made
    whole = content(grid, records)
    cut = data.draw(st.integers(0, len(whole)))
    claims = decode(whole[:cut])
    if cut < HEADER_BYTES:
        assert claims is None
        return
    assert claims is not None
    kept = (cut - HEADER_BYTES) // RECORD_BYTES
    assert dict(records[:kept]) == claimed(claims)


@given(ledgers(), st.data())
def test_damaged(made: tuple[Grid, Records], data: st.DataObject) -> None:
    """One byte that is another: its record is left out, or everything where it is the header's."""
    grid, records = made
    damaged = bytearray(content(grid, records))
    at = data.draw(st.integers(0, len(damaged) - 1))
    damaged[at] ^= data.draw(st.integers(1, 255))
    claims = decode(bytes(damaged))
    if at < HEADER_BYTES:
        assert claims is None
        return
    assert claims is not None
    hit = (at - HEADER_BYTES) // RECORD_BYTES
    assert dict(records[:hit] + records[hit + 1 :]) == claimed(claims)


@given(ledgers(), st.data())
def test_blocks_of_zeros_or_of_garbage(made: tuple[Grid, Records], data: st.DataObject) -> None:
    """What file systems leave after a crash: a stretch that was never written, or that belongs to something else."""
    grid, records = made
    damaged = bytearray(content(grid, records))
    at = data.draw(st.integers(0, len(damaged) - 1))
    garbage = data.draw(st.binary(min_size=1, max_size=100) | st.integers(1, 100).map(bytes))
    damaged[at : at + len(garbage)] = garbage
    check_subset(bytes(damaged), grid, records)


@given(st.binary(max_size=300))
def test_anything(damaged: bytes) -> None:
    """Whatever lies there is read without an error."""
    claims = decode(damaged)
    assert claims is None or claims.claimed >= 0


@given(ledgers(), GRIDS)
def test_another_grid(made: tuple[Grid, Records], grid: Grid) -> None:
    """Exactly the segments all of whose bytes were claimed; a digest only where it is of the same bytes."""
    old, records = made
    claims = decode(content(old, records))
    assert claims is not None
    known = {
        byte for index in claims.indices() for byte in range(old.offset(index), old.offset(index) + old.length(index))
    }
    slices = {(old.offset(index), old.length(index)): claims.digest(index) for index in claims.indices()}
    expected = {}
    for index in range(grid.segments):
        at, length = grid.offset(index), grid.length(index)
        if known.issuperset(range(at, at + length)):
            expected[index] = slices.get((at, length), UNKNOWN_DIGEST)
    found = claims_on(claims, grid)
    assert grid == found.grid
    assert expected.keys() == claimed(found).keys()
    for index, digest in claimed(found).items():
        assert digest in (UNKNOWN_DIGEST, expected[index])
        if old.chunk_size == grid.chunk_size:
            assert digest == expected[index]
