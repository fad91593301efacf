"""The name of the staging directory, in every form that a file system may take for it (proto/README.md, "Paths").

Such a name leads into staging at a destination that folds case (ext4 and others by directory, HFS+, SMB), that
normalises names or ignores characters in them (HFS+, APFS, ZFS, casefolding ext4), or drops dots and spaces at the end
(SMB, FAT). So neither end lets any of these names pass.
"""

import re
import unicodedata
from typing import Final

STAGING: Final = b".filestreamer"
"""The name of a receiver's staging directory."""
_CORE: Final = "filestreamer"
_ASCII: Final = re.compile(rb"(?:^|/)\.filestreamer[. ]*(?::[^/]*)?(?:/|\Z)", re.IGNORECASE)
"""Matches in a path of ASCII with such a component; what follows a colon names a stream of a file."""
_FOLDED: Final = re.compile(rf"(?:^|/)\.{_CORE}[. ]*(?::[^/]*)?(?:/|\Z)")
_IGNORED: Final = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
"""Code points that Unicode lets software ignore (Default_Ignorable_Code_Point)."""


def leads_to_staging(path: bytes) -> bool:
    """Whether a component of a path, or a name, is that of staging, or may be taken for it."""
    if path.isascii():  # nearly always: no normalisation changes it
        return STAGING in path.lower() and _ASCII.search(path) is not None
    text = _IGNORED.sub("", path.decode("utf-8", "surrogateescape"))
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKD", text).casefold())
    return _CORE in folded and _FOLDED.search(_IGNORED.sub("", folded)) is not None
