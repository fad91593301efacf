"""The messages of data connections: ChunkHeader, ChunkAck."""

from filestreamer.v1 import wire_pb2 as pb
from filestreamer.wire import limits
from filestreamer.wire import messages as m
from filestreamer.wire.codec.checks import enum, require, within
from filestreamer.wire.codec.tables import Decoders, Encoders


def _encode_chunk_header(h: m.ChunkHeader) -> pb.Frame:
    frame = pb.Frame()
    header = frame.chunk_header
    header.chunk_id = h.chunk_id
    for file_id, offset, length, runs in h.segments:
        segment = header.segments.add()
        segment.file_id = file_id
        segment.offset = offset
        segment.length = length
        if runs:
            segment.runs.extend(runs)
    return frame


def _decode_chunk_header(h: pb.ChunkHeader) -> m.ChunkHeader:
    # A bundle has up to a thousand segments, nearly all of them without runs.
    segments = tuple([m.Segment(s.file_id, s.offset, s.length, tuple(s.runs) if s.runs else ()) for s in h.segments])
    within(len(segments), 1, limits.SEGMENTS_PER_CHUNK, "the number of ChunkHeader.segments")
    length = runs_count = 0
    for _, offset, size, runs in segments:
        if not (0 < size <= limits.CHUNK_SIZE_MAX and offset <= limits.FILE_SIZE_MAX - size):
            within(size, 1, limits.CHUNK_SIZE_MAX, "ChunkHeader.segments.length")
            within(offset, 0, limits.FILE_SIZE_MAX - size, "ChunkHeader.segments.offset")
        length += size
        if runs:
            _check_runs(runs, size)
            runs_count += len(runs)
    within(length, 1, limits.CHUNK_SIZE_MAX, "the payload of a chunk")
    within(runs_count, 0, limits.RUNS_PER_CHUNK, "the number of ChunkHeader.segments.runs")
    return m.ChunkHeader(h.chunk_id, segments)


def _check_runs(runs: tuple[int, ...], length: int) -> None:
    """Check that runs make up a segment: a hole at least, only the first one empty, and all its bytes."""
    what = "ChunkHeader.segments.runs"
    require(len(runs) > 1, f"{what} has no hole")
    require(0 not in runs[1:], f"{what} has an empty run")
    require(sum(runs) == length, f"{what} makes {sum(runs)} bytes, not {length}")


def _encode_chunk_ack(a: m.ChunkAck) -> pb.Frame:
    return pb.Frame(chunk_ack=pb.ChunkAck(verdict=int(a.verdict), chunk_ids=a.chunk_ids))  # type: ignore[arg-type]


def _decode_chunk_ack(a: pb.ChunkAck) -> m.ChunkAck:
    within(len(a.chunk_ids), 1, limits.ACKS_PER_FRAME, "the number of ChunkAck.chunk_ids")
    return m.ChunkAck(enum(m.Verdict, a.verdict, "ChunkAck.verdict"), tuple(a.chunk_ids))


ENCODERS: Encoders = {
    m.ChunkHeader: _encode_chunk_header,
    m.ChunkAck: _encode_chunk_ack,
}
DECODERS: Decoders = {
    "chunk_header": _decode_chunk_header,
    "chunk_ack": _decode_chunk_ack,
}
