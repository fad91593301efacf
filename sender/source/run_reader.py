"""Reads and hashes the segments of a run of chunks together: one look at their file before, and one behind."""

from typing import NamedTuple

from filestreamer.telemetry.counters import StageClock
from filestreamer.wire.digests import segment_digest
from filestreamer.wire.messages import ChunkHeader
from sender.source.item import Identity, Item
from sender.source.known_digests import KnownDigests
from sender.source.reader import Reader


class Places(NamedTuple):
    """Segments of one length in a file."""

    offsets: range
    length: int

    @classmethod
    def of(cls, header: ChunkHeader) -> "Places":
        """Return those of a run."""
        first = header.segments[0]
        distance = header.stride * first.length
        return cls(range(first.offset, first.offset + header.chunks * distance, distance), first.length)


class RunReader:
    """Reads runs for one connection, whose `clock` notes the stages."""

    def __init__(self, reader: Reader, known: KnownDigests | None, clock: StageClock) -> None:
        """`known` are the digests of what this process has read, for other transfers; None where there are none."""
        self._reader = reader
        self._known = known
        self._clock = clock

    def read_into(self, item: Item, places: Places, view: memoryview) -> tuple[list[bytes], Identity]:
        """Fill `view` with segments; return their digests, and the identity that their file had all the while.

        Raises Unsendable where the file is not what was listed.
        """
        reader, clock, (offsets, length) = self._reader, self._clock, places
        clock.enter("read")
        before = reader.look(item)
        reader.read_run(item, view, offsets, length)
        clock.enter("digest")
        digests = self._known_digests(item, before, places)
        if digests is None:
            digests = [segment_digest(view[at : at + length]) for at in range(0, len(view), length)]
        seen = reader.confirm_run(item, before, offsets, length, digests)
        if self._known is not None and item.stream is None:
            for offset, digest in zip(offsets, digests, strict=True):
                self._known.add(seen, offset, length, digest)
        return digests, seen

    def _known_digests(self, item: Item, file: Identity, places: Places) -> list[bytes] | None:
        """Return the digests of segments, if this process knows all of them."""
        if self._known is None or item.stream is not None:
            return None
        found = [self._known.get(file, offset, places.length) for offset in places.offsets]
        digests = [digest for digest in found if digest is not None]
        return digests if len(digests) == len(found) else None
