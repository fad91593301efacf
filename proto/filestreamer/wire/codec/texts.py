"""Texts for people: cut before they are sent, cut and made printable when they come from a peer."""

from filestreamer.wire import limits


def clean_reason(text: str) -> str:
    """Make a reason from a peer fit for one line of a log."""
    return clean(text, limits.REASON_BYTES)


def clean(text: str, most: int) -> str:
    """Make a text from a peer fit for one line of a log: at most `most` bytes of UTF-8, all printable."""
    return "".join(c if c.isprintable() else "?" for c in clip(text, most))


def clip_reason(text: str) -> str:
    """Cut a reason that is to be sent to REASON_BYTES of UTF-8."""
    return clip(text, limits.REASON_BYTES)


def clip(text: str, most: int) -> str:
    """Cut a text that is to be sent to `most` bytes of UTF-8."""
    return text.encode("utf-8", "replace")[:most].decode("utf-8", "ignore")


def clip_path(path: bytes) -> bytes:
    """Cut a path to LEFT_OUT_PATH_BYTES, from its beginning: its end tells more."""
    return path if len(path) <= limits.LEFT_OUT_PATH_BYTES else b"..." + path[3 - limits.LEFT_OUT_PATH_BYTES :]
