"""What --delete asks the receiver for (proto/README.md, "Deleting")."""

import os

from filestreamer.wire import limits
from filestreamer.wire.codec import encode
from filestreamer.wire.errors import LocalProtocolError, UsageError
from filestreamer.wire.messages import Deletion, Offer
from filestreamer.wire.patterns import check_cost
from sender.listing.walk import destination_name
from sender.settings import SenderSettings


def find_deletion(settings: SenderSettings) -> Deletion | None:
    """Return what is to be deleted below the directories that the user names; None without --delete.

    Raises UsageError where the user names no directory, or more than a message holds.
    """
    if not settings.delete:
        return None
    names = [destination_name(path, settings.as_name or "") for path in settings.input_files if os.path.isdir(path)]
    if not names:
        raise UsageError("--delete: only what is in a directory can be mirrored: name a directory, such as DIR or DIR/")
    deletion = Deletion(tuple(names), tuple([os.fsencode(pattern) for pattern in settings.exclude if pattern]))
    try:
        check_cost(deletion.excludes)
    except ValueError as error:
        raise UsageError(f"--delete: --exclude {error}") from None
    is_small = len(names) <= limits.DELETION_ROOTS_MAX and len(deletion.excludes) <= limits.DELETION_EXCLUDES_MAX
    try:
        encode(Offer(1, None, False, 0, delete=deletion))
    except LocalProtocolError:
        is_small = False
    if not is_small or any(len(pattern) > limits.PATH_BYTES for pattern in deletion.excludes):
        raise UsageError("--delete: too many directories, or too many or too long patterns: send some at a time")
    return deletion
