"""Offer and ManifestPart, and Withdrawn, which takes files back."""

from typing import Any

from filestreamer.v1 import wire_pb2 as pb
from filestreamer.wire import limits
from filestreamer.wire import messages as m
from filestreamer.wire.codec.checks import MAX_U63, enum, require, within
from filestreamer.wire.codec.tables import Decoders, Encoders


def _encode_offer(o: m.Offer) -> pb.Frame:
    frame = pb.Frame()
    offer = frame.offer
    offer.chunk_size, offer.checksum, offer.total_bytes = o.chunk_size, o.checksum, o.total_bytes
    offer.dry_run, offer.xattrs, offer.again = o.dry_run, o.xattrs, o.again
    if o.shard is not None:
        offer.shard.shard_index, offer.shard.shard_count, offer.shard.tree = o.shard
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
        count = within(o.shard.shard_count, 2, limits.SHARDS_MAX, "Offer.shard.shard_count")
        index = within(o.shard.shard_index, 0, count - 1, "Offer.shard.shard_index")
        shard = m.Shard(index, count, o.shard.tree)
    chunk_size = within(o.chunk_size, 1, limits.CHUNK_SIZE_MAX, "Offer.chunk_size")
    total_bytes = within(o.total_bytes, 0, MAX_U63, "Offer.total_bytes")
    existing = enum(m.Existing, o.existing, "Offer.existing") if o.existing else m.Existing.REPLACE
    deletion = _decode_deletion(o.delete) if o.HasField("delete") else None
    return m.Offer(chunk_size, shard, o.checksum, total_bytes, existing, deletion, o.dry_run, o.xattrs, o.again)


def _decode_deletion(d: pb.Deletion) -> m.Deletion:
    within(len(d.roots), 1, limits.DELETION_ROOTS_MAX, "the number of Offer.delete.roots")
    within(len(d.excludes), 0, limits.DELETION_EXCLUDES_MAX, "the number of Offer.delete.excludes")
    for root in d.roots:
        within(len(root), 0, limits.PATH_BYTES, "the length of Offer.delete.roots")
    for pattern in d.excludes:
        within(len(pattern), 1, limits.PATH_BYTES, "the length of Offer.delete.excludes")
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
        _decode_xattrs(e.xattrs, "Entry.xattrs") if e.xattrs else (),
        within(e.data_bytes, 0, size, "Entry.data_bytes") if e.HasField("data_bytes") else None,
    )


def _check_entry(e: pb.Entry) -> m.EntryType:
    """Check an entry field by field; return its type. Raises RemoteProtocolError, which names the field."""
    kind = enum(m.EntryType, e.type, "Entry.type")
    within(len(e.path), 1, limits.PATH_BYTES, "the length of Entry.path")
    within(len(e.link_target), 0, limits.PATH_BYTES, "the length of Entry.link_target")
    require(
        bool(e.link_target) == (kind is m.EntryType.SYMLINK), "Entry.link_target is for symlinks, and only for them"
    )
    require(not e.size or kind is m.EntryType.FILE, "Entry.size is for files only")
    within(e.size, 0, limits.FILE_SIZE_MAX, "Entry.size")
    within(e.mode, 0, 0o7777, "Entry.mode")
    return kind


def _decode_xattrs(xattrs: Any, what: str) -> tuple[m.Xattr, ...]:
    within(len(xattrs), 0, limits.XATTRS_PER_ENTRY, f"the number of {what}")
    for x in xattrs:
        within(len(x.name), 1, limits.XATTR_NAME_BYTES, f"the length of {what}.name")
        require(b"\0" not in x.name, f"{what}.name has a byte 0")
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
    within(len(p.entries), least, most, "the number of ManifestPart.entries")
    if p.xattrs_continue:
        require(not p.last and bool(p.entries or p.more_xattrs), "ManifestPart.xattrs_continue is of no entry")
    first = within(p.first_file_id, 0, MAX_U63, "ManifestPart.first_file_id")
    more_xattrs = _decode_xattrs(p.more_xattrs, "ManifestPart.more_xattrs") if p.more_xattrs else ()
    entries = tuple([_decode_entry(entry) for entry in p.entries])
    return m.ManifestPart(first, entries, p.last, more_xattrs, p.xattrs_continue)


def _decode_withdrawn(w: pb.Withdrawn) -> m.Withdrawn:
    within(len(w.file_ids), 1, limits.FILES_PER_WITHDRAWN, "the number of Withdrawn.file_ids")
    return m.Withdrawn(tuple(w.file_ids))


ENCODERS: Encoders = {
    m.Offer: _encode_offer,
    m.ManifestPart: _encode_manifest_part,
    m.Withdrawn: lambda w: pb.Frame(withdrawn=pb.Withdrawn(file_ids=w.file_ids)),
}
DECODERS: Decoders = {
    "offer": _decode_offer,
    "manifest_part": _decode_manifest_part,
    "withdrawn": _decode_withdrawn,
}
