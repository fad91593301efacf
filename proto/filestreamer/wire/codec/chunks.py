"""The messages of data connections: ChunkHeader, ChunkAck."""

from filestreamer.v1 import wire_pb2 as pb
from filestreamer.wire import limits
from filestreamer.wire import messages as m
from filestreamer.wire.codec.checks import enum, require, within
from filestreamer.wire.codec.tables import Decoders, Encoders

_U64 = (1 << 64) - 1


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
    if h.chunks > 1:
        header.chunks, header.stride = h.chunks, h.stride
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
    if h.chunks or h.stride:
        _check_run(h, segments)
        return m.ChunkHeader(h.chunk_id, segments, h.chunks, h.stride)
    return m.ChunkHeader(h.chunk_id, segments)


def _check_run(h: pb.ChunkHeader, segments: tuple[m.Segment, ...]) -> None:
    """Check that a run is one of several chunks, each of one segment of the same length, and all within a file."""
    within(h.chunks, 2, limits.CHUNKS_PER_RUN, "ChunkHeader.chunks")
    within(h.stride, 1, limits.CHUNKS_PER_FILE, "ChunkHeader.stride")
    within(len(segments), 1, 1, "the number of ChunkHeader.segments of a run")
    _, offset, length, runs = segments[0]
    require(not runs, "ChunkHeader.segments.runs is of a run of chunks")
    within(length, 1, limits.RUN_BYTES // h.chunks, "ChunkHeader.segments.length of a run")
    distance = (h.chunks - 1) * h.stride
    within(h.chunk_id, 0, _U64 - distance, "ChunkHeader.chunk_id of a run")
    within(offset, 0, limits.FILE_SIZE_MAX - length - distance * length, "ChunkHeader.segments.offset of a run")


def _check_runs(runs: tuple[int, ...], length: int) -> None:
    """Check that runs make up a segment: a hole at least, only the first one empty, and all its bytes."""
    what = "ChunkHeader.segments.runs"
    require(len(runs) > 1, f"{what} has no hole")
    require(0 not in runs[1:], f"{what} has an empty run")
    require(sum(runs) == length, f"{what} makes {sum(runs)} bytes, not {length}")


def _encode_chunk_ack(a: m.ChunkAck) -> pb.Frame:
    frame = pb.Frame(chunk_ack=pb.ChunkAck(verdict=int(a.verdict), chunk_ids=a.chunk_ids))  # type: ignore[arg-type]
    for first_chunk_id, chunks, stride in a.ranges:
        frame.chunk_ack.ranges.add(first_chunk_id=first_chunk_id, chunks=chunks, stride=stride)
    return frame


def _decode_chunk_ack(a: pb.ChunkAck) -> m.ChunkAck:
    verdict = enum(m.Verdict, a.verdict, "ChunkAck.verdict")
    ranges = tuple([_decode_chunk_range(each) for each in a.ranges]) if a.ranges else ()
    chunks = len(a.chunk_ids) + sum([each.chunks for each in ranges])
    within(chunks, 1, limits.ACKS_PER_FRAME, "the number of chunks in ChunkAck.chunk_ids and ChunkAck.ranges")
    return m.ChunkAck(verdict, tuple(a.chunk_ids), ranges)


def _decode_chunk_range(r: pb.ChunkRange) -> m.ChunkRange:
    chunks = within(r.chunks, 2, limits.ACKS_PER_FRAME, "ChunkAck.ranges.chunks")
    stride = within(r.stride, 1, limits.CHUNKS_PER_FILE, "ChunkAck.ranges.stride")
    first = within(r.first_chunk_id, 0, _U64 - (chunks - 1) * stride, "ChunkAck.ranges.first_chunk_id")
    return m.ChunkRange(first, chunks, stride)


ENCODERS: Encoders = {
    m.ChunkHeader: _encode_chunk_header,
    m.ChunkAck: _encode_chunk_ack,
}
DECODERS: Decoders = {
    "chunk_header": _decode_chunk_header,
    "chunk_ack": _decode_chunk_ack,
}
