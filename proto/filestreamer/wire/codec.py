"""Messages to frame bodies and back: the only module that imports the generated code.

`decode` accepts exactly what proto/README.md allows. A body that does not parse, has no known kind, an unspecified or
unknown enum value, or a field out of bounds raises RemoteProtocolError; unknown fields are ignored. `encode` raises
LocalProtocolError for a message that does not fit a frame.

Each message has its encoder and its decoder one after the other, in the order of the protocol; two tables at the
end find them.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any, TypeVar

from google.protobuf.message import DecodeError

from filestreamer.v1 import wire_pb2 as pb
from filestreamer.wire import limits
from filestreamer.wire import messages as m
from filestreamer.wire.errors import Code, LocalProtocolError, RemoteProtocolError

_MAX_U63 = (1 << 63) - 1
_FEATURE_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-")


def encode(message: m.Message) -> bytes:
    """Serialize a message to a frame body.

    Raises LocalProtocolError where the message is larger than a frame may be, or a value does not fit its field. The
    bounds that `decode` checks are not checked here: the caller must keep to them.
    """
    try:
        body: bytes = _ENCODERS[type(message)](message).SerializeToString()
    except (TypeError, ValueError) as error:
        raise LocalProtocolError(f"{type(message).__name__} can't be encoded: {error}") from None
    if len(body) > limits.FRAME_BYTES:
        raise LocalProtocolError(f"{type(message).__name__} of {len(body)} bytes is over {limits.FRAME_BYTES}")
    return body


def decode(body: bytes | bytearray | memoryview) -> m.Message:
    """Parse a frame body into a message.

    Raises RemoteProtocolError, which names message and field, for anything that the protocol does not allow.
    """
    try:
        frame = pb.Frame.FromString(body)  # type: ignore[arg-type]
    except DecodeError:
        raise RemoteProtocolError(f"a frame of {len(body)} bytes does not parse") from None
    kind = frame.WhichOneof("kind")
    if kind is None:
        raise RemoteProtocolError("a frame of no known kind")
    return _DECODERS[kind](getattr(frame, kind))


# --- checks of decoded fields ------------------------------------------------------------------------------------


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise RemoteProtocolError(what)


def _sized(value: bytes, size: int, what: str) -> bytes:
    _require(len(value) == size, f"{what} has {len(value)} bytes, not {size}")
    return value


def _within(value: int, lowest: int, highest: int, what: str) -> int:
    if not lowest <= value <= highest:
        raise RemoteProtocolError(f"{what} is {value}, not in {lowest}..{highest}")
    return value


E = TypeVar("E", m.Role, m.EntryType, m.Existing, m.Phase, m.Verdict, m.Standing, m.SkipKind, Code)


def _enum(kind: type[E], value: int, what: str) -> E:
    try:
        return kind(value)
    except ValueError:
        raise RemoteProtocolError(f"{what} has the unknown value {value}") from None


def _reason(text: str) -> str:
    """Make a reason from a peer fit for one line of a log."""
    return _line(text, limits.REASON_BYTES)


def _line(text: str, most: int) -> str:
    """Make a text from a peer fit for one line of a log: at most `most` bytes of UTF-8, all printable."""
    return "".join(c if c.isprintable() else "?" for c in clip(text, most))


def clip_reason(text: str) -> str:
    """Cut a reason that is to be sent to REASON_BYTES of UTF-8."""
    return clip(text, limits.REASON_BYTES)


def clip(text: str, most: int) -> str:
    """Cut a text that is to be sent to `most` bytes of UTF-8."""
    return text.encode("utf-8", "replace")[:most].decode("utf-8", "ignore")


# --- opening -----------------------------------------------------------------------------------------------------


def _features(names: Any, what: str) -> tuple[str, ...]:
    """Decode the names of features. One form for one set, so that it can be compared."""
    _within(len(names), 0, limits.FEATURES_MAX, f"the number of {what}")
    features = tuple(names)
    for name in features:
        _within(len(name), 1, limits.FEATURE_NAME_BYTES, f"the length of a name in {what}")
        _require(_FEATURE_CHARACTERS.issuperset(name), f"{what} has a name with something other than a-z, 0-9 and '-'")
    _require(all(a < b for a, b in pairwise(features)), f"{what} is not sorted, or has a name twice")
    return features


def _encode_greeting(g: m.Greeting) -> pb.Frame:
    return pb.Frame(greeting=pb.Greeting(**g._asdict()))


def _decode_greeting(g: pb.Greeting) -> m.Greeting:
    _within(g.lowest_version, 1, g.highest_version, "Greeting.lowest_version")
    return m.Greeting(
        g.lowest_version,
        g.highest_version,
        _sized(g.incarnation, limits.ID_BYTES, "Greeting.incarnation"),
        _sized(g.nonce, limits.ID_BYTES, "Greeting.nonce"),
        g.token_required,
        _features(g.features, "Greeting.features"),
    )


def _encode_hello(h: m.Hello) -> pb.Frame:
    fields = h._asdict()
    return pb.Frame(hello=pb.Hello(**{**fields, "role": int(h.role)}))


def _decode_hello(h: pb.Hello) -> m.Hello:
    connections = _within(h.connections, 1, limits.CONNECTIONS_MAX, "Hello.connections")
    role = _enum(m.Role, h.role, "Hello.role")
    highest_id = connections - 1 if role is m.Role.DATA else 0
    return m.Hello(
        h.version,
        _sized(h.transfer_id, limits.ID_BYTES, "Hello.transfer_id"),
        role,
        _within(h.connection_id, 0, highest_id, "Hello.connection_id"),
        connections,
        _sized(h.nonce, limits.ID_BYTES, "Hello.nonce"),
        _features(h.features, "Hello.features"),
    )


def _decode_proof(p: pb.Proof) -> m.Proof:
    return m.Proof(_sized(p.mac, limits.MAC_BYTES, "Proof.mac"))


def _decode_welcome(w: pb.Welcome) -> m.Welcome:
    return m.Welcome(_sized(w.mac, limits.MAC_BYTES, "Welcome.mac") if w.mac else b"")


def _encode_end(e: m.Refusal | m.Abort) -> dict[str, Any]:
    return {"code": int(e.code), "reason": clip_reason(e.reason)}


def _decode_refusal(r: pb.Refusal) -> m.Refusal:
    return m.Refusal(_enum(Code, r.code, "Refusal.code"), _reason(r.reason))


def _decode_abort(a: pb.Abort) -> m.Abort:
    return m.Abort(_enum(Code, a.code, "Abort.code"), _reason(a.reason))


# --- control -----------------------------------------------------------------------------------------------------


def _encode_offer(o: m.Offer) -> pb.Frame:
    frame = pb.Frame()
    offer = frame.offer
    offer.chunk_size, offer.checksum, offer.total_bytes = o.chunk_size, o.checksum, o.total_bytes
    offer.dry_run, offer.xattrs = o.dry_run, o.xattrs
    if o.shard is not None:
        offer.shard.shard_index, offer.shard.shard_count = o.shard
    if o.existing is not m.Existing.REPLACE:
        offer.existing = o.existing  # type: ignore[assignment]
    if o.delete is not None:
        offer.delete.SetInParent()
        offer.delete.roots.extend(o.delete.roots)
        offer.delete.excludes.extend(o.delete.excludes)
    return frame


def _decode_offer(o: pb.Offer) -> m.Offer:
    shard = None
    if o.HasField("shard"):
        count = _within(o.shard.shard_count, 2, limits.SHARDS_MAX, "Offer.shard.shard_count")
        shard = m.Shard(_within(o.shard.shard_index, 0, count - 1, "Offer.shard.shard_index"), count)
    chunk_size = _within(o.chunk_size, 1, limits.CHUNK_SIZE_MAX, "Offer.chunk_size")
    total_bytes = _within(o.total_bytes, 0, _MAX_U63, "Offer.total_bytes")
    existing = _enum(m.Existing, o.existing, "Offer.existing") if o.existing else m.Existing.REPLACE
    deletion = _decode_deletion(o.delete) if o.HasField("delete") else None
    return m.Offer(chunk_size, shard, o.checksum, total_bytes, existing, deletion, o.dry_run, o.xattrs)


def _decode_deletion(d: pb.Deletion) -> m.Deletion:
    _within(len(d.roots), 1, limits.DELETION_ROOTS_MAX, "the number of Offer.delete.roots")
    _within(len(d.excludes), 0, limits.DELETION_EXCLUDES_MAX, "the number of Offer.delete.excludes")
    for root in d.roots:
        _within(len(root), 0, limits.PATH_BYTES, "the length of Offer.delete.roots")
    for pattern in d.excludes:
        _within(len(pattern), 1, limits.PATH_BYTES, "the length of Offer.delete.excludes")
    return m.Deletion(tuple(d.roots), tuple(d.excludes))


def _encode_entry(e: m.Entry, entry: pb.Entry) -> None:
    # A tree may have millions of entries: fields are set one by one, without those that have their default, as that is
    # faster than a constructor call.
    entry.path = e.path
    entry.type = e.type  # type: ignore[assignment]
    entry.size = e.size
    entry.mode = e.mode
    entry.mtime_ns = e.mtime_ns
    if e.uid is not None:
        entry.uid = e.uid
    if e.gid is not None:
        entry.gid = e.gid
    if e.link_target:
        entry.link_target = e.link_target
    if e.hard_link_group:
        entry.hard_link_group = e.hard_link_group
    for xattr in e.xattrs:
        entry.xattrs.add(name=xattr.name, value=xattr.value)
    if e.data_bytes is not None:
        entry.data_bytes = e.data_bytes


_ENTRY_TYPES = {int(kind): kind for kind in m.EntryType}


def _decode_entry(e: pb.Entry) -> m.Entry:
    # A tree may have millions of entries: one quick test lets the common case pass, and only an entry that fails it is
    # checked field by field.
    kind = _ENTRY_TYPES.get(e.type)
    path, size, mode, target = e.path, e.size, e.mode, e.link_target
    is_file = kind is m.EntryType.FILE and not target and size <= limits.FILE_SIZE_MAX
    if kind is None or not (is_file and 0 < len(path) <= limits.PATH_BYTES and mode <= 0o7777):
        kind = _check_entry(e)
    return m.Entry(
        path,
        kind,
        size,
        mode,
        e.mtime_ns,
        e.uid if e.HasField("uid") else None,
        e.gid if e.HasField("gid") else None,
        target,
        e.hard_link_group,
        (),
        _decode_xattrs(e.xattrs, "Entry.xattrs") if e.xattrs else (),
        _within(e.data_bytes, 0, size, "Entry.data_bytes") if e.HasField("data_bytes") else None,
    )


def _check_entry(e: pb.Entry) -> m.EntryType:
    """Check an entry field by field; return its type. Raises RemoteProtocolError, which names the field."""
    kind = _enum(m.EntryType, e.type, "Entry.type")
    _within(len(e.path), 1, limits.PATH_BYTES, "the length of Entry.path")
    _within(len(e.link_target), 0, limits.PATH_BYTES, "the length of Entry.link_target")
    _require(
        bool(e.link_target) == (kind is m.EntryType.SYMLINK), "Entry.link_target is for symlinks, and only for them"
    )
    _require(not e.size or kind is m.EntryType.FILE, "Entry.size is for files only")
    _within(e.size, 0, limits.FILE_SIZE_MAX, "Entry.size")
    _within(e.mode, 0, 0o7777, "Entry.mode")
    return kind


def _decode_xattrs(xattrs: Any, what: str) -> tuple[m.Xattr, ...]:
    _within(len(xattrs), 0, limits.XATTRS_PER_ENTRY, f"the number of {what}")
    for x in xattrs:
        _within(len(x.name), 1, limits.XATTR_NAME_BYTES, f"the length of {what}.name")
        _require(b"\0" not in x.name, f"{what}.name has a byte 0")
    return tuple([m.Xattr(x.name, x.value) for x in xattrs])


def _encode_manifest_part(p: m.ManifestPart) -> pb.Frame:
    frame = pb.Frame()
    part = frame.manifest_part
    part.first_file_id = p.first_file_id
    part.last = p.last
    for entry in p.entries:
        _encode_entry(entry, part.entries.add())
    for xattr in p.more_xattrs:
        part.more_xattrs.add(name=xattr.name, value=xattr.value)
    part.xattrs_continue = p.xattrs_continue
    return frame


def _decode_manifest_part(p: pb.ManifestPart) -> m.ManifestPart:
    least = 0 if p.last or p.more_xattrs else 1
    most = 0 if p.more_xattrs else limits.ENTRIES_PER_PART
    _within(len(p.entries), least, most, "the number of ManifestPart.entries")
    if p.xattrs_continue:
        _require(not p.last and bool(p.entries or p.more_xattrs), "ManifestPart.xattrs_continue is of no entry")
    first = _within(p.first_file_id, 0, _MAX_U63, "ManifestPart.first_file_id")
    more_xattrs = _decode_xattrs(p.more_xattrs, "ManifestPart.more_xattrs") if p.more_xattrs else ()
    entries = tuple([_decode_entry(entry) for entry in p.entries])
    return m.ManifestPart(first, entries, p.last, more_xattrs, p.xattrs_continue)


def _file_ranges(ranges: Any, what: str) -> tuple[m.FileRange, ...]:
    _within(len(ranges), 0, limits.RANGES_PER_NEEDED, f"the number of {what}")
    return tuple(
        m.FileRange(
            _within(r.first_file_id, 0, _MAX_U63, f"{what}.first_file_id"),
            _within(r.files, 1, _MAX_U63 - r.first_file_id, f"{what}.files"),
        )
        for r in ranges
    )


def _segment_ranges(ranges: Any, least: int, what: str) -> tuple[m.SegmentRange, ...]:
    _within(len(ranges), least, limits.RANGES_PER_NEEDED, f"the number of {what}")
    return tuple(
        m.SegmentRange(
            r.file_id,
            _within(r.first_segment, 0, limits.CHUNKS_PER_FILE, f"{what}.first_segment"),
            _within(r.segments, 1, limits.CHUNKS_PER_FILE - r.first_segment, f"{what}.segments"),
        )
        for r in ranges
    )


def _encode_needed(n: m.Needed) -> pb.Frame:
    files = [pb.FileRange(**r._asdict()) for r in n.files]
    segments = [pb.SegmentRange(**r._asdict()) for r in n.segments]
    return pb.Frame(needed=pb.Needed(files=files, segments=segments, window_bytes=n.window_bytes))


def _decode_needed(n: pb.Needed) -> m.Needed:
    segments = _segment_ranges(n.segments, 0, "Needed.segments")
    window_bytes = _within(n.window_bytes, 0, _MAX_U63, "Needed.window_bytes")
    return m.Needed(_file_ranges(n.files, "Needed.files"), segments, window_bytes)


def _encode_held(h: m.Held) -> pb.Frame:
    frame = pb.Frame()
    held = frame.held
    held.file_id, held.first_segment, held.digests, held.final = h.file_id, h.first_segment, h.digests, h.final
    for ranges, encoded in ((h.unchecked, held.unchecked), (h.left, held.left)):
        for first_file_id, files in ranges:
            encoded.add(first_file_id=first_file_id, files=files)
    return frame


def _decode_held(h: pb.Held) -> m.Held:
    count, rest = divmod(len(h.digests), limits.DIGEST_BYTES)
    _require(rest == 0 and count <= limits.DIGESTS_PER_HELD, f"Held.digests has {len(h.digests)} bytes")
    first = _within(h.first_segment, 0, limits.CHUNKS_PER_FILE - count, "Held.first_segment")
    unchecked, left = _file_ranges(h.unchecked, "Held.unchecked"), _file_ranges(h.left, "Held.left")
    return m.Held(h.file_id, first, h.digests, unchecked, h.final, left)


def _encode_progress(p: m.Progress) -> pb.Frame:
    return pb.Frame(
        progress=pb.Progress(
            phase=int(p.phase),  # type: ignore[arg-type]
            acknowledged_bytes=p.acknowledged_bytes,
            rehashed_bytes=p.rehashed_bytes,
            stage_microseconds=p.stage_microseconds,
            deleted=p.deleted,
        )
    )


def _decode_progress(p: pb.Progress) -> m.Progress:
    _within(len(p.stage_microseconds), 0, limits.STAGES_PER_PROGRESS, "the number of Progress.stage_microseconds")
    phase = _enum(m.Phase, p.phase, "Progress.phase")
    return m.Progress(phase, p.acknowledged_bytes, p.rehashed_bytes, tuple(p.stage_microseconds), p.deleted)


def _encode_finish(f: m.Finish) -> pb.Frame:
    frame = pb.Frame()
    finish = frame.finish
    finish.chunks, finish.root_digest, finish.stream_bytes = f.chunks, f.root_digest, f.stream_bytes
    for kind, entries in f.left_out_counts:
        finish.left_out_counts.add(kind=int(kind), entries=entries)
    for path, kind, reason in f.left_out:
        clipped = clip(reason, limits.LEFT_OUT_REASON_BYTES)
        finish.left_out.add(path=clip_path(path), kind=int(kind), reason=clipped)
    return frame


def clip_path(path: bytes) -> bytes:
    """Cut a path to LEFT_OUT_PATH_BYTES, from its beginning: its end tells more."""
    return path if len(path) <= limits.LEFT_OUT_PATH_BYTES else b"..." + path[3 - limits.LEFT_OUT_PATH_BYTES :]


def _decode_finish(f: pb.Finish) -> m.Finish:
    counts = {}
    for count in f.left_out_counts:
        kind = _enum(m.SkipKind, count.kind, "Finish.left_out_counts.kind")
        _require(kind not in counts, "Finish.left_out_counts has a kind twice")
        counts[kind] = _within(count.entries, 1, _MAX_U63, "Finish.left_out_counts.entries")
    _within(len(f.left_out), 0, limits.LEFT_OUT_PER_FINISH, "the number of Finish.left_out")
    left_out = tuple([_decode_left_out(each) for each in f.left_out])
    for kind in m.SkipKind:
        listed = sum(each.kind is kind for each in left_out)
        _require(listed <= counts.get(kind, 0), "Finish.left_out has more of a kind than Finish.left_out_counts")
    return m.Finish(
        f.chunks,
        _sized(f.root_digest, limits.DIGEST_BYTES, "Finish.root_digest"),
        _within(f.stream_bytes, 0, limits.FILE_SIZE_MAX, "Finish.stream_bytes"),
        tuple([m.LeftOutCount(kind, entries) for kind, entries in counts.items()]),
        left_out,
    )


def _decode_left_out(e: pb.LeftOut) -> m.LeftOut:
    _within(len(e.path), 1, limits.LEFT_OUT_PATH_BYTES, "the length of Finish.left_out.path")
    kind = _enum(m.SkipKind, e.kind, "Finish.left_out.kind")
    return m.LeftOut(e.path, kind, _line(e.reason, limits.LEFT_OUT_REASON_BYTES))


def _decode_complete(c: pb.Complete) -> m.Complete:
    counts = [
        _within(count, 0, _MAX_U63, f"Complete.{name}")
        for name, count in (("deleted", c.deleted), ("undeletable", c.undeletable), ("left", c.left))
    ]
    return m.Complete(c.committed, *counts)


def _encode_verdicts(v: m.Verdicts) -> pb.Frame:
    frame = pb.Frame()
    for e in v.entries:
        encoded = frame.verdicts.entries.add(standing=int(e.standing), path=e.path)
        if e.standing is not m.Standing.EXTRA:
            encoded.file_id, encoded.files = e.file_id, e.files
        encoded.reason = clip(e.reason, limits.LEFT_OUT_REASON_BYTES)
    return frame


def _decode_verdicts(v: pb.Verdicts) -> m.Verdicts:
    _within(len(v.entries), 1, limits.VERDICTS_PER_FRAME, "the number of Verdicts.entries")
    return m.Verdicts(tuple([_decode_entry_verdict(e) for e in v.entries]))


def _decode_entry_verdict(e: pb.EntryVerdict) -> m.EntryVerdict:
    standing = _enum(m.Standing, e.standing, "Verdicts.entries.standing")
    reason = _line(e.reason, limits.LEFT_OUT_REASON_BYTES)
    if standing is m.Standing.EXTRA:
        _within(len(e.path), 1, limits.PATH_BYTES, "the length of Verdicts.entries.path")
        return m.EntryVerdict(standing, path=e.path, reason=reason)
    _require(not e.path, "Verdicts.entries.path is for EXTRA entries only")
    first = _within(e.file_id, 0, _MAX_U63, "Verdicts.entries.file_id")
    return m.EntryVerdict(standing, first, _within(e.files, 1, _MAX_U63 - first, "Verdicts.entries.files"), b"", reason)


def _decode_withdrawn(w: pb.Withdrawn) -> m.Withdrawn:
    _within(len(w.file_ids), 1, limits.FILES_PER_WITHDRAWN, "the number of Withdrawn.file_ids")
    return m.Withdrawn(tuple(w.file_ids))


def _encode_declined(d: m.Declined) -> pb.Frame:
    frame = pb.Frame()
    for file_id, kind, reason, path in d.entries:
        frame.declined.entries.add(
            file_id=file_id, kind=int(kind), reason=clip(reason, limits.LEFT_OUT_REASON_BYTES), path=clip_path(path)
        )
    return frame


def _decode_declined(d: pb.Declined) -> m.Declined:
    _within(len(d.entries), 1, limits.ENTRIES_PER_DECLINED, "the number of Declined.entries")
    return m.Declined(tuple([_decode_declined_entry(each) for each in d.entries]))


def _decode_declined_entry(e: pb.DeclinedEntry) -> m.DeclinedEntry:
    kind = _enum(m.SkipKind, e.kind, "Declined.entries.kind")
    _require(kind in m.RECEIVER_KINDS, f"Declined.entries.kind is {kind.name}, which is for the sender to say")
    _within(len(e.path), 1, limits.LEFT_OUT_PATH_BYTES, "the length of Declined.entries.path")
    return m.DeclinedEntry(e.file_id, kind, _line(e.reason, limits.LEFT_OUT_REASON_BYTES), e.path)


def _decode_notice(n: pb.Notice) -> m.Notice:
    _within(len(n.texts), 1, limits.TEXTS_PER_NOTICE, "the number of Notice.texts")
    return m.Notice(tuple([_reason(text) for text in n.texts]))


def _encode_zeros(z: m.Zeros) -> pb.Frame:
    return pb.Frame(zeros=pb.Zeros(segments=[pb.SegmentRange(**r._asdict()) for r in z.segments]))


def _decode_zeros(z: pb.Zeros) -> m.Zeros:
    return m.Zeros(_segment_ranges(z.segments, 1, "Zeros.segments"))


# --- data --------------------------------------------------------------------------------------------------------


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
    _within(len(segments), 1, limits.SEGMENTS_PER_CHUNK, "the number of ChunkHeader.segments")
    length = runs_count = 0
    for _, offset, size, runs in segments:
        if not (0 < size <= limits.CHUNK_SIZE_MAX and offset <= limits.FILE_SIZE_MAX - size):
            _within(size, 1, limits.CHUNK_SIZE_MAX, "ChunkHeader.segments.length")
            _within(offset, 0, limits.FILE_SIZE_MAX - size, "ChunkHeader.segments.offset")
        length += size
        if runs:
            _check_runs(runs, size)
            runs_count += len(runs)
    _within(length, 1, limits.CHUNK_SIZE_MAX, "the payload of a chunk")
    _within(runs_count, 0, limits.RUNS_PER_CHUNK, "the number of ChunkHeader.segments.runs")
    return m.ChunkHeader(h.chunk_id, segments)


def _check_runs(runs: tuple[int, ...], length: int) -> None:
    """Check that runs make up a segment: a hole at least, only the first one empty, and all its bytes."""
    what = "ChunkHeader.segments.runs"
    _require(len(runs) > 1, f"{what} has no hole")
    _require(0 not in runs[1:], f"{what} has an empty run")
    _require(sum(runs) == length, f"{what} makes {sum(runs)} bytes, not {length}")


def _encode_chunk_ack(a: m.ChunkAck) -> pb.Frame:
    return pb.Frame(chunk_ack=pb.ChunkAck(verdict=int(a.verdict), chunk_ids=a.chunk_ids))  # type: ignore[arg-type]


def _decode_chunk_ack(a: pb.ChunkAck) -> m.ChunkAck:
    _within(len(a.chunk_ids), 1, limits.ACKS_PER_FRAME, "the number of ChunkAck.chunk_ids")
    return m.ChunkAck(_enum(m.Verdict, a.verdict, "ChunkAck.verdict"), tuple(a.chunk_ids))


_ENCODERS: dict[type, Callable[[Any], pb.Frame]] = {
    m.Greeting: _encode_greeting,
    m.Hello: _encode_hello,
    m.Proof: lambda p: pb.Frame(proof=pb.Proof(mac=p.mac)),
    m.Welcome: lambda w: pb.Frame(welcome=pb.Welcome(mac=w.mac)),
    m.Refusal: lambda r: pb.Frame(refusal=pb.Refusal(**_encode_end(r))),
    m.Offer: _encode_offer,
    m.ManifestPart: _encode_manifest_part,
    m.Needed: _encode_needed,
    m.Held: _encode_held,
    m.Progress: _encode_progress,
    m.Finish: _encode_finish,
    m.Zeros: _encode_zeros,
    m.Complete: lambda c: pb.Frame(complete=pb.Complete(**c._asdict())),
    m.Withdrawn: lambda w: pb.Frame(withdrawn=pb.Withdrawn(file_ids=w.file_ids)),
    m.Declined: _encode_declined,
    m.Notice: lambda n: pb.Frame(notice=pb.Notice(texts=[clip_reason(text) for text in n.texts])),
    m.Verdicts: _encode_verdicts,
    m.ChunkHeader: _encode_chunk_header,
    m.ChunkAck: _encode_chunk_ack,
    m.Abort: lambda a: pb.Frame(abort=pb.Abort(**_encode_end(a))),
}

_DECODERS: dict[str, Callable[[Any], m.Message]] = {
    "greeting": _decode_greeting,
    "hello": _decode_hello,
    "proof": _decode_proof,
    "welcome": _decode_welcome,
    "refusal": _decode_refusal,
    "offer": _decode_offer,
    "manifest_part": _decode_manifest_part,
    "needed": _decode_needed,
    "held": _decode_held,
    "progress": _decode_progress,
    "finish": _decode_finish,
    "zeros": _decode_zeros,
    "complete": _decode_complete,
    "withdrawn": _decode_withdrawn,
    "declined": _decode_declined,
    "notice": _decode_notice,
    "verdicts": _decode_verdicts,
    "chunk_header": _decode_chunk_header,
    "chunk_ack": _decode_chunk_ack,
    "abort": _decode_abort,
}
