"""Extended attributes that are larger than a frame: cut, sent, put together; and what no decent peer sends."""

import pytest

from filestreamer.wire import limits
from filestreamer.wire import messages as m
from filestreamer.wire.codec import decode, encode
from filestreamer.wire.errors import RemoteProtocolError
from filestreamer.wire.xattr_parts import PartJoiner, split

FILE = m.Entry(b"f", m.EntryType.FILE, 8, 0o644, 0)
KIB = limits.KIB


def with_xattrs(*sizes: int) -> m.Entry:
    return FILE._replace(
        xattrs=tuple(m.Xattr(b"user.%d" % at, bytes([at % 256]) * size) for at, size in enumerate(sizes))
    )


@pytest.mark.parametrize(
    ("sizes", "messages"),
    [((), 1), ((0, 1), 1), ((8 * KIB, 8 * KIB - 100), 1), ((16 * KIB,), 2), ((64 * KIB,) * 3, 7), ((1000,) * 1000, 22)],
)
@pytest.mark.parametrize("last", [True, False])
def test_what_is_cut_is_put_together(sizes: tuple[int, ...], messages: int, *, last: bool) -> None:
    part = m.ManifestPart(7, (FILE, with_xattrs(*sizes)), last)
    bodies = [encode(message) for message in split(part)]  # each fits a frame
    assert len(bodies) == messages
    joiner = PartJoiner()
    joined = [joiner.join(decode(body)) for body in bodies]  # type: ignore[arg-type]
    assert joined == [None] * (messages - 1) + [part]
    assert not joiner.is_waiting


def test_a_sender_that_comes_again_begins_again() -> None:
    part = m.ManifestPart(0, (with_xattrs(64 * KIB),), True)
    first, *rest = split(part)
    joiner = PartJoiner()
    assert joiner.join(first) is None
    assert joiner.join(rest[0]) is None
    joiner.begin_again()
    assert [joiner.join(message) for message in (first, *rest)][-1] == part


MORE = (m.Xattr(b"user.x", b"1"),)


@pytest.mark.parametrize(
    ("messages", "what"),
    [
        ([m.ManifestPart(0, (), False, MORE, False)], "no entry began"),
        ([m.ManifestPart(0, (FILE,), False, (), True), m.ManifestPart(1, (FILE,), True)], "another part"),
        ([m.ManifestPart(0, (FILE,), False, (), True), m.ManifestPart(2, (), True, MORE)], "another part"),
        ([m.ManifestPart(0, (with_xattrs(limits.XATTRS_BYTES),), True)], "more than"),
        (
            [
                m.ManifestPart(0, (FILE,), False, (), True),
                *[m.ManifestPart(1, (), False, (m.Xattr(b"user.x", bytes(60 * KIB)),), True)] * 18,
            ],
            "more than",
        ),
        (
            [
                m.ManifestPart(0, (with_xattrs(*[0] * 1024),), False, (), True),
                m.ManifestPart(1, (), True, (m.Xattr(b"user.1024", b""),)),
            ],
            "more than 1024",
        ),
    ],
)
def test_what_no_decent_sender_sends(messages: list[m.ManifestPart], what: str) -> None:
    joiner = PartJoiner()

    def join() -> list[m.ManifestPart | None]:
        return [joiner.join(message) for message in messages]

    with pytest.raises(RemoteProtocolError, match=what):
        join()
