"""What the ends tell each other of the transfer as a whole, and of single entries.

Progress, Connections, Finish, Declined, Notice, Verdicts, Complete.
"""

from filestreamer.v1 import wire_pb2 as pb
from filestreamer.wire import limits
from filestreamer.wire import messages as m
from filestreamer.wire.codec.checks import MAX_U63, enum, require, sized, within
from filestreamer.wire.codec.tables import Decoders, Encoders
from filestreamer.wire.codec.texts import clean, clean_reason, clip, clip_path, clip_reason


def _encode_progress(p: m.Progress) -> pb.Frame:
    return pb.Frame(
        progress=pb.Progress(
            phase=int(p.phase),  # type: ignore[arg-type]
            acknowledged_bytes=p.acknowledged_bytes,
            rehashed_bytes=p.rehashed_bytes,
            stage_microseconds=p.stage_microseconds,
            deleted=p.deleted,
            under_way_bytes=p.under_way_bytes,
            starved=p.starved,
            passed_over=p.passed_over,
        )
    )


def _decode_progress(p: pb.Progress) -> m.Progress:
    within(len(p.stage_microseconds), 0, limits.STAGES_PER_PROGRESS, "the number of Progress.stage_microseconds")
    within(len(p.starved), 0, limits.CONNECTIONS_MAX, "the number of Progress.starved")
    within(max(p.starved, default=0), 0, limits.CONNECTIONS_MAX - 1, "Progress.starved")
    phase = enum(m.Phase, p.phase, "Progress.phase")
    return m.Progress(
        phase,
        p.acknowledged_bytes,
        p.rehashed_bytes,
        tuple(p.stage_microseconds),
        p.deleted,
        p.under_way_bytes,
        tuple(p.starved),
        p.passed_over,
    )


def _decode_connections(c: pb.Connections) -> m.Connections:
    return m.Connections(within(c.wanted, 0, limits.CONNECTIONS_MAX, "Connections.wanted"))


def _encode_finish(f: m.Finish) -> pb.Frame:
    frame = pb.Frame()
    finish = frame.finish
    finish.chunks, finish.root_digest, finish.stream_bytes = f.chunks, f.root_digest, f.stream_bytes
    finish.ahead, finish.walk_digest = f.ahead, f.walk_digest
    for kind, entries in f.left_out_counts:
        finish.left_out_counts.add(kind=int(kind), entries=entries)
    for path, kind, reason in f.left_out:
        clipped = clip(reason, limits.LEFT_OUT_REASON_BYTES)
        finish.left_out.add(path=clip_path(path), kind=int(kind), reason=clipped)
    return frame


def _decode_finish(f: pb.Finish) -> m.Finish:
    counts = {}
    for count in f.left_out_counts:
        kind = enum(m.SkipKind, count.kind, "Finish.left_out_counts.kind")
        require(kind not in counts, "Finish.left_out_counts has a kind twice")
        counts[kind] = within(count.entries, 1, MAX_U63, "Finish.left_out_counts.entries")
    within(len(f.left_out), 0, limits.LEFT_OUT_PER_FINISH, "the number of Finish.left_out")
    left_out = tuple([_decode_left_out(each) for each in f.left_out])
    for kind in m.SkipKind:
        listed = sum(each.kind is kind for each in left_out)
        require(listed <= counts.get(kind, 0), "Finish.left_out has more of a kind than Finish.left_out_counts")
    return m.Finish(
        f.chunks,
        sized(f.root_digest, limits.DIGEST_BYTES, "Finish.root_digest"),
        within(f.stream_bytes, 0, limits.FILE_SIZE_MAX, "Finish.stream_bytes"),
        tuple([m.LeftOutCount(kind, entries) for kind, entries in counts.items()]),
        left_out,
        f.ahead,
        sized(f.walk_digest, limits.DIGEST_BYTES, "Finish.walk_digest") if f.walk_digest else b"",
    )


def _decode_left_out(e: pb.LeftOut) -> m.LeftOut:
    within(len(e.path), 1, limits.LEFT_OUT_PATH_BYTES, "the length of Finish.left_out.path")
    kind = enum(m.SkipKind, e.kind, "Finish.left_out.kind")
    return m.LeftOut(e.path, kind, clean(e.reason, limits.LEFT_OUT_REASON_BYTES))


def _encode_declined(d: m.Declined) -> pb.Frame:
    frame = pb.Frame()
    for file_id, kind, reason, path in d.entries:
        frame.declined.entries.add(
            file_id=file_id, kind=int(kind), reason=clip(reason, limits.LEFT_OUT_REASON_BYTES), path=clip_path(path)
        )
    return frame


def _decode_declined(d: pb.Declined) -> m.Declined:
    within(len(d.entries), 1, limits.ENTRIES_PER_DECLINED, "the number of Declined.entries")
    return m.Declined(tuple([_decode_declined_entry(each) for each in d.entries]))


def _decode_declined_entry(e: pb.DeclinedEntry) -> m.DeclinedEntry:
    kind = enum(m.SkipKind, e.kind, "Declined.entries.kind")
    require(kind in m.RECEIVER_KINDS, f"Declined.entries.kind is {kind.name}, which is for the sender to say")
    within(len(e.path), 1, limits.LEFT_OUT_PATH_BYTES, "the length of Declined.entries.path")
    return m.DeclinedEntry(e.file_id, kind, clean(e.reason, limits.LEFT_OUT_REASON_BYTES), e.path)


def _decode_notice(n: pb.Notice) -> m.Notice:
    within(len(n.texts), 1, limits.TEXTS_PER_NOTICE, "the number of Notice.texts")
    return m.Notice(tuple([clean_reason(text) for text in n.texts]))


def _encode_verdicts(v: m.Verdicts) -> pb.Frame:
    frame = pb.Frame()
    for e in v.entries:
        encoded = frame.verdicts.entries.add(standing=int(e.standing), path=e.path)
        if e.standing is not m.Standing.EXTRA:
            encoded.file_id, encoded.files = e.file_id, e.files
        encoded.reason = clip(e.reason, limits.LEFT_OUT_REASON_BYTES)
    return frame


def _decode_verdicts(v: pb.Verdicts) -> m.Verdicts:
    within(len(v.entries), 1, limits.VERDICTS_PER_FRAME, "the number of Verdicts.entries")
    return m.Verdicts(tuple([_decode_entry_verdict(e) for e in v.entries]))


def _decode_entry_verdict(e: pb.EntryVerdict) -> m.EntryVerdict:
    standing = enum(m.Standing, e.standing, "Verdicts.entries.standing")
    reason = clean(e.reason, limits.LEFT_OUT_REASON_BYTES)
    if standing is m.Standing.EXTRA:
        within(len(e.path), 1, limits.PATH_BYTES, "the length of Verdicts.entries.path")
        return m.EntryVerdict(standing, path=e.path, reason=reason)
    require(not e.path, "Verdicts.entries.path is for EXTRA entries only")
    first = within(e.file_id, 0, MAX_U63, "Verdicts.entries.file_id")
    return m.EntryVerdict(standing, first, within(e.files, 1, MAX_U63 - first, "Verdicts.entries.files"), b"", reason)


def _decode_complete(c: pb.Complete) -> m.Complete:
    return m.Complete(
        c.committed,
        within(c.deleted, 0, MAX_U63, "Complete.deleted"),
        within(c.undeletable, 0, MAX_U63, "Complete.undeletable"),
        within(c.left, 0, MAX_U63, "Complete.left"),
        within(c.shards_finished, 0, limits.SHARDS_MAX, "Complete.shards_finished"),
        within(c.job_files, 0, MAX_U63, "Complete.job_files"),
        within(c.job_bytes, 0, MAX_U63, "Complete.job_bytes"),
    )


ENCODERS: Encoders = {
    m.Progress: _encode_progress,
    m.Connections: lambda c: pb.Frame(connections=pb.Connections(wanted=c.wanted)),
    m.Finish: _encode_finish,
    m.Declined: _encode_declined,
    m.Notice: lambda n: pb.Frame(notice=pb.Notice(texts=[clip_reason(text) for text in n.texts])),
    m.Verdicts: _encode_verdicts,
    m.Complete: lambda c: pb.Frame(complete=pb.Complete(**c._asdict())),
}
DECODERS: Decoders = {
    "progress": _decode_progress,
    "connections": _decode_connections,
    "finish": _decode_finish,
    "declined": _decode_declined,
    "notice": _decode_notice,
    "verdicts": _decode_verdicts,
    "complete": _decode_complete,
}
