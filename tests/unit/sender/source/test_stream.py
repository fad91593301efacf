"""Standard input, cut into chunks that are kept until they are acknowledged."""

import os
import threading
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from filestreamer.wire.errors import Code, TransferFailed
from sender.mailbox import Failed, Mailbox
from sender.source.stream import Stream
from tests.support.services import HANG, UNIT
from tests.support.waiting import until

CHUNK = 1000


class Piped(NamedTuple):
    """A stream, the pipe that leads to it, and what it told."""

    stream: Stream
    write_fd: int
    changed: threading.Semaphore
    mailbox: Mailbox

    def wait(self, changes: int = 1) -> None:
        """Wait for so many changes: a chunk, or the end."""
        for _ in range(changes):
            assert self.changed.acquire(timeout=HANG)

    def content(self) -> bytes:
        """Everything that is in its chunks, which must still be there."""
        segments = [self.stream.segments(chunk_id) for chunk_id in range(self.stream.chunks)]
        return b"".join(bytes(self.stream.bytes_at(s.offset, s.length)) for (s,) in segments)


@pytest.fixture
def piped() -> Iterator[Piped]:
    """Return a stream of three chunks' window that is being read."""
    read_fd, write_fd = os.pipe()
    made = Piped(Stream(read_fd, CHUNK, 3 * CHUNK + 1), write_fd, threading.Semaphore(0), Mailbox())
    made.stream.start(made.changed.release, made.mailbox)
    yield made
    made.stream.stop()
    for fd in (read_fd, write_fd):
        try:
            os.close(fd)
        except OSError:
            pass


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK - 1])
def test_every_chunk_but_the_last_is_full(piped: Piped, size: int) -> None:
    content = os.urandom(size)
    os.write(piped.write_fd, content)
    os.close(piped.write_fd)
    until(lambda: piped.stream.is_ended, "the end")
    assert (piped.stream.size, piped.stream.chunks) == (size, -(-size // CHUNK))
    assert piped.content() == content
    with pytest.raises(IndexError):
        piped.stream.segments(piped.stream.chunks)


def test_a_chunk_that_comes_in_pieces_is_one_chunk(piped: Piped) -> None:
    for piece in (b"a" * 400, b"b" * 400):
        os.write(piped.write_fd, piece)
        until(lambda: piped.stream.is_waiting, "the piece is read")
        assert piped.stream.chunks == 0
    os.write(piped.write_fd, b"c" * 201)
    piped.wait()
    assert piped.stream.chunks == 1
    assert piped.content() == b"a" * 400 + b"b" * 400 + b"c" * 200


def test_no_more_is_read_than_the_window_has(piped: Piped) -> None:
    os.write(piped.write_fd, bytes(range(5)) * CHUNK)
    piped.wait(3)
    assert not piped.changed.acquire(timeout=0.05)
    assert piped.stream.chunks == 3
    piped.stream.advance(1)
    piped.wait()
    assert not piped.changed.acquire(timeout=0.05)
    assert piped.stream.chunks == 4


def test_what_is_not_acknowledged_can_be_read_again(piped: Piped) -> None:
    content = os.urandom(4 * CHUNK)
    os.write(piped.write_fd, content)
    piped.wait(3)
    piped.stream.advance(1)
    piped.wait()
    for chunk_id in (3, 1, 2):
        at = chunk_id * CHUNK
        assert bytes(piped.stream.bytes_at(at, CHUNK)) == content[at : at + CHUNK]


def test_starting_over_is_possible_while_nothing_was_overwritten(piped: Piped) -> None:
    os.write(piped.write_fd, b"x" * 3 * CHUNK)
    piped.wait(3)
    assert piped.stream.start_over()
    os.write(piped.write_fd, b"y")
    piped.stream.advance(1)
    until(lambda: piped.stream.is_waiting, "the fourth is begun")
    assert not piped.stream.start_over()


def test_starting_over_asks_for_everything_to_be_acknowledged_again(piped: Piped) -> None:
    os.write(piped.write_fd, b"x" * 2 * CHUNK + b"y" * CHUNK + b"z" * CHUNK)
    piped.wait(3)
    piped.stream.advance(0)
    assert piped.stream.start_over()
    assert not piped.changed.acquire(timeout=0.05)
    assert piped.content() == b"x" * 2 * CHUNK + b"y" * CHUNK


def test_a_read_error_names_the_source(tmp_path: os.PathLike[str]) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    mailbox = Mailbox()
    Stream(fd, CHUNK, CHUNK).start(lambda: None, mailbox)
    event = mailbox.take(UNIT)
    os.close(fd)
    assert isinstance(event, Failed)
    failure = event.error
    assert isinstance(failure, TransferFailed)
    assert (failure.code, str(failure)) == (Code.SOURCE, "can't read standard input: Is a directory")


def test_the_end_is_heard_by_a_reader_that_waits_for_room(piped: Piped) -> None:
    os.write(piped.write_fd, b"x" * 4 * CHUNK)
    piped.wait(3)
    piped.stream.stop()
    until(lambda: not any(thread.name == "stream" for thread in threading.enumerate()), "its thread ends")


def test_a_descriptor_that_does_not_block_is_waited_for() -> None:
    read_fd, write_fd = os.pipe()
    os.set_blocking(read_fd, False)
    piped = Piped(Stream(read_fd, CHUNK, CHUNK), write_fd, threading.Semaphore(0), Mailbox())
    piped.stream.start(piped.changed.release, piped.mailbox)
    until(lambda: piped.stream.is_waiting, "it waits")
    os.write(write_fd, b"late")
    os.close(write_fd)
    piped.wait()
    assert (piped.content(), piped.mailbox.take(0)) == (b"late", None)
    os.close(read_fd)
