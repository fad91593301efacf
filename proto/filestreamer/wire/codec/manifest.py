"""Offer and ManifestPart, and Withdrawn, which takes files back."""

import itertools
from collections.abc import Iterable, Sequence
from typing import Any, Final

from filestreamer.v1 import wire_pb2 as pb
from filestreamer.wire import limits
from filestreamer.wire import messages as m
from filestreamer.wire.codec.checks import MAX_U63, all_within, enum, require, within
from filestreamer.wire.codec.tables import Decoders, Encoders
from filestreamer.wire.errors import RemoteProtocolError


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


def _decode_xattrs(xattrs: Any, what: str) -> tuple[m.Xattr, ...]:
    within(len(xattrs), 0, limits.XATTRS_PER_ENTRY, f"the number of {what}")
    for x in xattrs:
        within(len(x.name), 1, limits.XATTR_NAME_BYTES, f"the length of {what}.name")
        require(b"\0" not in x.name, f"{what}.name has a byte 0")
    return tuple([m.Xattr(x.name, x.value) for x in xattrs])


# A tree may have millions of entries. Their columns are read and written whole, and only an entry that is more than a
# plain file is looked at by itself.

_NOT_TOLD: Final = -1
"""Stands for a uid or gid that is None, as in chown(2)."""
_ID_MAX: Final = (1 << 32) - 2
_NO_DETAILS: Final = tuple(m.Entry._field_defaults.values())[2:]
"""What an entry without EntryDetails has in the last fields."""
_ENTRY_TYPES: Final = {int(kind): kind for kind in m.EntryType}


def _encode_manifest_part(p: m.ManifestPart) -> pb.Frame:
    frame = pb.Frame()
    part = frame.manifest_part
    part.first_file_id = p.first_file_id
    if p.entries:
        paths, types, sizes, modes, mtimes_ns, uids, gids, *details = zip(*p.entries, strict=True)
        part.paths.extend(paths)
        part.types.extend(types)
        part.sizes.extend(sizes)
        part.modes.extend(modes)
        part.mtimes_ns.extend(mtimes_ns)
        part.uids.extend(_encode_ids(uids))
        part.gids.extend(_encode_ids(gids))
        if any(column.count(none) < len(column) for column, none in zip(details, _NO_DETAILS, strict=True)):
            _encode_details(p.entries, part.details)
    part.last = p.last
    for xattr in p.more_xattrs:
        part.more_xattrs.add(name=xattr.name, value=xattr.value)
    part.xattrs_continue = p.xattrs_continue
    return frame


def _encode_ids(ids: tuple[int | None, ...]) -> list[int]:
    if ids.count(None) == len(ids):
        return []
    return [_NOT_TOLD if number is None else number for number in ids]


def _encode_details(entries: tuple[m.Entry, ...], encoded: Any) -> None:
    for index, entry in enumerate(entries):
        if entry[-len(_NO_DETAILS) :] == _NO_DETAILS:
            continue
        details = encoded.add(
            index=index,
            link_target=entry.link_target,
            hard_link_group=entry.hard_link_group,
            data_bytes=entry.data_bytes,
        )
        for xattr in entry.xattrs:
            details.xattrs.add(name=xattr.name, value=xattr.value)


def _decode_manifest_part(p: pb.ManifestPart) -> m.ManifestPart:
    least = 0 if p.last or p.more_xattrs else 1
    most = 0 if p.more_xattrs else limits.ENTRIES_PER_PART
    count = within(len(p.paths), least, most, "the number of ManifestPart.paths")
    if p.xattrs_continue:
        require(not p.last and bool(count or p.more_xattrs), "ManifestPart.xattrs_continue is of no entry")
    first = within(p.first_file_id, 0, MAX_U63, "ManifestPart.first_file_id")
    more_xattrs = _decode_xattrs(p.more_xattrs, "ManifestPart.more_xattrs") if p.more_xattrs else ()
    return m.ManifestPart(first, _decode_entries(p), p.last, more_xattrs, p.xattrs_continue)


def _decode_entries(p: pb.ManifestPart) -> tuple[m.Entry, ...]:
    paths = list(p.paths)
    types, sizes = _column("types", p.types, paths), _column("sizes", p.sizes, paths)
    modes, mtimes_ns = _column("modes", p.modes, paths), _column("mtimes_ns", p.mtimes_ns, paths)
    kinds = [_ENTRY_TYPES.get(number) for number in types]
    if None in kinds:
        raise RemoteProtocolError(f"ManifestPart.types has the unknown value {types[kinds.index(None)]}")
    all_within([len(path) for path in paths], 1, limits.PATH_BYTES, "the length of ManifestPart.paths")
    all_within(sizes, 0, limits.FILE_SIZE_MAX, "ManifestPart.sizes")
    all_within(modes, 0, 0o7777, "ManifestPart.modes")
    symlinks: set[int] = set()
    if kinds.count(m.EntryType.FILE) < len(kinds):
        is_right = all(kind is m.EntryType.FILE for kind, size in zip(kinds, sizes, strict=True) if size)
        require(is_right, "ManifestPart.sizes is for files only")
        symlinks = {index for index, kind in enumerate(kinds) if kind is m.EntryType.SYMLINK}
    uids, gids = _decode_ids("uids", p.uids, paths), _decode_ids("gids", p.gids, paths)
    rows = zip(paths, kinds, sizes, modes, mtimes_ns, uids, gids, *map(itertools.repeat, _NO_DETAILS), strict=False)
    entries = list(map(m.Entry._make, rows))
    _decode_details(p.details, entries, symlinks)
    return tuple(entries)


def _column(name: str, values: Sequence[int], paths: Sequence[bytes]) -> list[int]:
    require(len(values) == len(paths), f"ManifestPart.{name} has {len(values)} values for {len(paths)} paths")
    return list(values)


def _decode_ids(name: str, ids: Sequence[int], paths: Sequence[bytes]) -> Iterable[int | None]:
    if not ids:
        return itertools.repeat(None)
    numbers = _column(name, ids, paths)
    all_within(numbers, _NOT_TOLD, _ID_MAX, f"ManifestPart.{name}")
    return [None if number == _NOT_TOLD else number for number in numbers]


def _decode_details(details: Sequence[pb.EntryDetails], entries: list[m.Entry], symlinks: set[int]) -> None:
    """Give these entries their details; those at the indices `symlinks` need a target, and only they have one."""
    what, before = "ManifestPart.details", -1
    for d in details:
        index = before = within(d.index, before + 1, len(entries) - 1, f"{what}.index")
        entry, data_bytes = entries[index], None
        if d.HasField("data_bytes"):
            data_bytes = within(d.data_bytes, 0, entry.size, f"{what}.data_bytes")
        if d.hard_link_group:
            require(entry.type is m.EntryType.FILE, f"{what}.hard_link_group is for files only")
        xattrs = _decode_xattrs(d.xattrs, f"{what}.xattrs") if d.xattrs else ()
        if d.link_target:
            require(index in symlinks, f"{what}.link_target is for symlinks only")
            within(len(d.link_target), 1, limits.PATH_BYTES, f"the length of {what}.link_target")
            require(b"\0" not in d.link_target, f"{what}.link_target has a byte 0")
            symlinks.discard(index)
        had = entry[: -len(_NO_DETAILS)]
        entries[index] = m.Entry._make((*had, d.link_target, d.hard_link_group, xattrs, data_bytes))
    require(not symlinks, f"{what}.link_target is missing, of a symlink")


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
