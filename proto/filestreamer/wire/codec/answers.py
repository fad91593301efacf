"""What is to be sent of a file, and what is not: Needed, Held, Zeros."""

from typing import Any

from filestreamer.v1 import wire_pb2 as pb
from filestreamer.wire import limits
from filestreamer.wire import messages as m
from filestreamer.wire.codec.checks import MAX_U63, require, within
from filestreamer.wire.codec.tables import Decoders, Encoders


def _file_ranges(ranges: Any, what: str) -> tuple[m.FileRange, ...]:
    within(len(ranges), 0, limits.RANGES_PER_NEEDED, f"the number of {what}")
    return tuple(
        m.FileRange(
            within(r.first_file_id, 0, MAX_U63, f"{what}.first_file_id"),
            within(r.files, 1, MAX_U63 - r.first_file_id, f"{what}.files"),
        )
        for r in ranges
    )


def _segment_ranges(ranges: Any, least: int, what: str) -> tuple[m.SegmentRange, ...]:
    within(len(ranges), least, limits.RANGES_PER_NEEDED, f"the number of {what}")
    return tuple(
        m.SegmentRange(
            r.file_id,
            within(r.first_segment, 0, limits.CHUNKS_PER_FILE - 1, f"{what}.first_segment"),
            within(r.segments, 1, limits.CHUNKS_PER_FILE - r.first_segment, f"{what}.segments"),
        )
        for r in ranges
    )


def _encode_needed(n: m.Needed) -> pb.Frame:
    files = [pb.FileRange(**r._asdict()) for r in n.files]
    segments = [pb.SegmentRange(**r._asdict()) for r in n.segments]
    return pb.Frame(needed=pb.Needed(files=files, segments=segments, window_bytes=n.window_bytes))


def _decode_needed(n: pb.Needed) -> m.Needed:
    segments = _segment_ranges(n.segments, 0, "Needed.segments")
    window_bytes = within(n.window_bytes, 0, MAX_U63, "Needed.window_bytes")
    return m.Needed(_file_ranges(n.files, "Needed.files"), segments, window_bytes)


def _encode_held(h: m.Held) -> pb.Frame:
    frame = pb.Frame()
    held = frame.held
    held.file_id, held.first_segment, held.digests, held.final = h.file_id, h.first_segment, h.digests, h.final
    for ranges, encoded in ((h.unchecked, held.unchecked), (h.left, held.left), (h.files, held.files)):
        for first_file_id, files in ranges:
            encoded.add(first_file_id=first_file_id, files=files)
    return frame


def _decode_held(h: pb.Held) -> m.Held:
    count, rest = divmod(len(h.digests), limits.DIGEST_BYTES)
    require(rest == 0 and count <= limits.DIGESTS_PER_HELD, f"Held.digests has {len(h.digests)} bytes")
    first = within(h.first_segment, 0, limits.CHUNKS_PER_FILE - count, "Held.first_segment")
    unchecked, left = _file_ranges(h.unchecked, "Held.unchecked"), _file_ranges(h.left, "Held.left")
    files = _file_ranges(h.files, "Held.files")
    if files:
        require(not (h.file_id or first), "Held has files, and is of segments of one")
        require(sum(r.files for r in files) == count, f"Held has {count} digests, which are not those of its files")
    return m.Held(h.file_id, first, h.digests, unchecked, h.final, left, files)


def _encode_zeros(z: m.Zeros) -> pb.Frame:
    return pb.Frame(zeros=pb.Zeros(segments=[pb.SegmentRange(**r._asdict()) for r in z.segments]))


def _decode_zeros(z: pb.Zeros) -> m.Zeros:
    return m.Zeros(_segment_ranges(z.segments, 1, "Zeros.segments"))


ENCODERS: Encoders = {
    m.Needed: _encode_needed,
    m.Held: _encode_held,
    m.Zeros: _encode_zeros,
}
DECODERS: Decoders = {
    "needed": _decode_needed,
    "held": _decode_held,
    "zeros": _decode_zeros,
}
