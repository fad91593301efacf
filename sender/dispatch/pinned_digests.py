"""The digests of what was read from the source: the first one of each segment is binding. Pure.

A segment may be read several times: to compare it with what the receiver holds, and to send it, again after a
connection was lost. If it ever reads differently, the source changed in between, and what the receiver has is a mixture
of two versions. So the first digest is pinned, and any other one is an error of the file. At the end, all of them
together make the root digest (proto/README.md, "The root digest").
"""

from collections.abc import Container, Iterator, Sequence
from typing import Final

from filestreamer.wire import limits
from filestreamer.wire.digests import root_digest

_NOT_PINNED: Final = bytes(limits.DIGEST_BYTES)


class PinnedDigests:
    """Digests by the ordinal of their chunk (`chunk_states`), and those of a bundle by file as well.

    Several threads may pin at a time, without a lock: a chunk that is one segment is with one thread at a time, and
    `dict.setdefault`, which pins the files of a bundle, is atomic.
    """

    def __init__(self) -> None:
        self._digests = bytearray()  # of chunks that are one segment
        self._open_bundles: dict[int, dict[int, bytes]] = {}
        """For each bundle that is not done: the digest of each of its files, by file_id."""
        self._closed_bundles: dict[int, bytes] = {}
        """For each bundle that is done: the digests of its files, in order, as one string."""
        self._left_out: list[range] = []  # ordinals of the chunks of withdrawn files

    def extend(self, chunks: int) -> None:
        """Have room for `chunks` chunks."""
        self._digests.extend(bytes(limits.DIGEST_BYTES * chunks - len(self._digests)))

    def pin_segment(self, ordinal: int, digest: bytes) -> bool:
        """Pin the digest of a chunk that is one segment; return whether it is the one that was pinned first."""
        at = ordinal * limits.DIGEST_BYTES
        pinned = self._digests[at : at + limits.DIGEST_BYTES]
        if pinned == _NOT_PINNED:
            self._digests[at : at + limits.DIGEST_BYTES] = digest
            return True
        return pinned == digest

    def pin_run(self, ordinals: range, digests: Sequence[bytes]) -> list[int]:
        """Pin the digests of chunks that are one segment each.

        Return the indices of those whose digest is not the one that was pinned first.
        """
        table, size = self._digests, limits.DIGEST_BYTES
        differing = []
        for index, at in enumerate(range(ordinals.start * size, ordinals.stop * size, ordinals.step * size)):
            pinned = table[at : at + size]
            if pinned == _NOT_PINNED:
                table[at : at + size] = digests[index]
            elif pinned != digests[index]:
                differing.append(index)
        return differing

    def is_pinned(self, ordinal: int) -> bool:
        """Whether a segment of this chunk was read."""
        at = ordinal * limits.DIGEST_BYTES
        is_segment = self._digests[at : at + limits.DIGEST_BYTES] != _NOT_PINNED
        return is_segment or ordinal in self._open_bundles or ordinal in self._closed_bundles

    def pinned_between(self, start: int, stop: int) -> list[int]:
        """Return those of the ordinals [start, stop), each a chunk of one segment, whose digest is pinned."""
        size = limits.DIGEST_BYTES
        piece = self._digests[start * size : stop * size]
        if piece == bytes(len(piece)):  # nearly always
            return []
        return [start + at // size for at in range(0, len(piece), size) if piece[at : at + size] != _NOT_PINNED]

    def pin_bundle(self, ordinal: int, file_ids: Sequence[int], digests: Sequence[bytes]) -> list[int]:
        """Pin the digests of files of a bundle.

        Return the indices of those files whose digest is not the one that was pinned first.
        """
        closed = self._closed_bundles.get(ordinal)
        if closed is not None:
            # A bundle that was closed is read again only where it is a single file: the receiver was restarted, or the
            # chunk was lost behind Finish.
            return [] if closed == digests[0] else [0]
        pinned = self._open_bundles.setdefault(ordinal, {})
        return [
            index
            for index, (file_id, digest) in enumerate(zip(file_ids, digests, strict=True))
            if pinned.setdefault(file_id, digest) != digest
        ]

    def close_bundle(self, ordinal: int, withdrawn: Container[int]) -> None:
        """Note that a chunk is done, or sent. Of a bundle, keep only the digests of files that are not withdrawn."""
        pinned = self._open_bundles.pop(ordinal, None)
        if pinned is not None:
            kept = [pinned[file_id] for file_id in sorted(pinned) if file_id not in withdrawn]
            self._closed_bundles[ordinal] = b"".join(kept)

    def leave_out(self, ordinals: range) -> None:
        """Leave the chunks of a file that is withdrawn, or accepted unread, out of the root digest."""
        self._left_out.append(ordinals)

    def leave_nothing_out(self) -> None:
        """Have all that is pinned in the root digest again: another incarnation of the receiver answers anew."""
        self._left_out.clear()

    def root_digest(self, zeros: Sequence[tuple[int, int]] = ()) -> bytes:
        """Compute the digest over all digests that are pinned, in the order of the manifest.

        `zeros` are ranges of chunks of zeros, which are left out, too.
        """
        # Not done in `leave_out`: a connection may still have been reading such a chunk then, and pin its digest.
        for ordinals in [*self._left_out, *(range(*span) for span in zeros)]:
            for ordinal in ordinals:
                at = ordinal * limits.DIGEST_BYTES
                self._digests[at : at + limits.DIGEST_BYTES] = _NOT_PINNED
                self._closed_bundles.pop(ordinal, None)
        return root_digest(self._in_order())

    def _in_order(self) -> Iterator[bytes | bytearray]:
        for at in range(0, len(self._digests), limits.DIGEST_BYTES):
            ordinal = at // limits.DIGEST_BYTES
            digest = self._closed_bundles.get(ordinal) or self._digests[at : at + limits.DIGEST_BYTES]
            if digest != _NOT_PINNED:
                yield digest
