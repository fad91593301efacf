"""Manifests for tests that need no files."""

from filestreamer.wire import messages as m
from sender.dispatch.manifest import Manifest
from sender.source.item import Identity, Item


def item_of(size: int, path: bytes = b"f") -> Item:
    """Return a file that is only listed."""
    return Item(m.Entry(path, m.EntryType.FILE, size, 0o644, 0), b"/nowhere/" + path, Identity(1, 1, size, 0, 0))


def manifest_of(*sizes: int, chunk_size: int = 1) -> Manifest:
    """Return a manifest of files of these sizes, in one part."""
    manifest = Manifest(chunk_size)
    manifest.add([item_of(size, b"%d" % number) for number, size in enumerate(sizes)], last=True)
    return manifest
