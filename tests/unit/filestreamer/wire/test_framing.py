"""Frames (proto/README.md, "Frames"): length, checksum, body. Bytes of whole frames are in test_golden."""

from collections.abc import Callable

import pytest

from filestreamer.wire import limits
from filestreamer.wire import messages as m
from filestreamer.wire.codec import decode, encode
from filestreamer.wire.errors import Code, ConnectionLost, LocalProtocolError, RemoteProtocolError
from filestreamer.wire.framing import check_body, frame, frame_of, parse_header, read_body

FINISH = m.Finish(3, bytes(range(16)))


class Source:
    """Bytes to be read in exact counts; remembers which counts were asked for."""

    def __init__(self, data: bytes) -> None:
        self.left = data
        self.asked: list[int] = []

    def __call__(self, count: int) -> bytes:
        self.asked.append(count)
        if count > len(self.left):
            raise ConnectionLost("the end")
        data, self.left = self.left[:count], self.left[count:]
        return data


def test_a_frame_is_read_as_it_was_written() -> None:
    source = Source(frame(FINISH) + b"next")

    assert decode(read_body(source, limits.FRAME_BYTES)) == FINISH
    assert source.left == b"next"


def test_a_body_that_is_encoded_already_makes_the_same_frame() -> None:
    assert frame_of(encode(FINISH)) == frame(FINISH)


def test_reading_takes_the_header_and_then_the_body() -> None:
    source = Source(frame(FINISH))
    read_body(source, limits.FRAME_BYTES)

    assert source.asked == [limits.FRAME_HEADER_BYTES, len(encode(FINISH))]


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_a_body_read_from_a_buffer_is_a_copy(kind: Callable[[bytes], bytes]) -> None:
    whole = frame(FINISH)
    body = read_body(Source(kind(whole)), limits.FRAME_BYTES)

    assert type(body) is bytes
    assert body == encode(FINISH)


@pytest.mark.parametrize("limit", [limits.OPENING_FRAME_BYTES, limits.FRAME_BYTES])
def test_the_limit_is_the_largest_length(limit: int) -> None:
    body = bytes(limit)

    assert read_body(Source(frame_of(body)), limit) == body
    with pytest.raises(RemoteProtocolError, match=f"announces {limit + 1} bytes, the limit is {limit}$") as caught:
        read_body(Source(frame_of(bytes(limit + 1))), limit)
    assert caught.value.code is Code.CORRUPT


@pytest.mark.parametrize("length", [0, limits.FRAME_BYTES + 1, (1 << 31) - 1, 1 << 31, (1 << 32) - 1])
def test_a_length_out_of_bounds_is_refused_before_the_body_is_waited_for(length: int) -> None:
    source = Source(length.to_bytes(4, "big") + bytes(8))

    with pytest.raises(RemoteProtocolError):
        read_body(source, limits.FRAME_BYTES)
    assert source.asked == [limits.FRAME_HEADER_BYTES]


def test_header_parts() -> None:
    assert parse_header(b"\x00\x00\x01\x02abcdefgh", 1024) == (0x102, b"abcdefgh")


@pytest.mark.parametrize("bit", range(8 * (len(frame(FINISH)) - 4)))
def test_each_flipped_bit_behind_the_length_is_noticed(bit: int) -> None:
    damaged = bytearray(frame(FINISH))
    damaged[4 + bit // 8] ^= 1 << bit % 8

    with pytest.raises(RemoteProtocolError, match="checksum") as caught:
        read_body(Source(bytes(damaged)), limits.FRAME_BYTES)
    assert caught.value.code is Code.CORRUPT
    assert caught.value.retryable


@pytest.mark.parametrize("bit", range(32))
def test_each_flipped_bit_of_the_length_is_noticed(bit: int) -> None:
    """Too long, waiting for what does not come, or a checksum that is not that of the shorter body."""
    damaged = (int.from_bytes(frame(FINISH)[:4], "big") ^ 1 << bit).to_bytes(4, "big") + frame(FINISH)[4:]

    with pytest.raises((RemoteProtocolError, ConnectionLost)):
        read_body(Source(damaged), limits.FRAME_BYTES)


def test_a_good_body_passes_the_check() -> None:
    whole = frame(FINISH)

    check_body(whole[12:], whole[4:12])
    check_body(memoryview(whole)[12:], whole[4:12])


@pytest.mark.parametrize(
    ("first_bytes", "who"),
    [
        (b"\x16\x03\x01\x00\xf8\x01\x00\x00\xf4\x03\x03\x00", "a TLS client"),
        (b"\x16\x03\x03\x00\xf8\x01\x00\x00\xf4\x03\x03\x00", "a TLS client"),
        (b"GET / HTTP/1", "an HTTP peer"),
        (b"POST /upload", "an HTTP peer"),
        (b"HEAD / HTTP/", "an HTTP peer"),
        (b"PUT / HTTP/1", "an HTTP peer"),
        (b"OPTIONS / HT", "an HTTP peer"),
        (b"HTTP/1.1 400", "an HTTP peer"),
        (b"SSH-2.0-Open", "an SSH peer"),
    ],
)
def test_the_usual_strangers_are_named(first_bytes: bytes, who: str) -> None:
    with pytest.raises(RemoteProtocolError, match=f"^{who} is at the other end") as caught:
        parse_header(first_bytes, limits.FRAME_BYTES)
    assert caught.value.code is Code.PROTOCOL


def test_other_strangers_are_not_guessed_at() -> None:
    with pytest.raises(RemoteProtocolError, match=r"the limit is 1024$"):
        parse_header(b"\xff" * 12, 1024)


def test_a_message_that_is_too_large_is_our_error() -> None:
    with pytest.raises(LocalProtocolError):
        frame(m.Held(0, 0, bytes(limits.FRAME_BYTES)))
