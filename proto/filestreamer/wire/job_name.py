"""The name of a job: what is moved where, by one transfer or by several (proto/README.md, "Jobs").

Both ends may be given one: a receiver takes no other, and the shards of a tree are grouped by theirs.
"""

import re
from typing import Final

from filestreamer.wire import limits
from filestreamer.wire.errors import Code, RemoteProtocolError

_NAME: Final = re.compile(rf"[a-z0-9](?:[a-z0-9.-]{{0,{limits.JOB_NAME_BYTES - 2}}}[a-z0-9])?")


def is_job_name(text: str) -> bool:
    """Whether a text is the name of a job: 1 to JOB_NAME_BYTES characters, as a name in Kubernetes."""
    return _NAME.fullmatch(text) is not None


def check_sender(job: str, senders: str) -> str:
    """Return the job for Welcome, given the receiver's own and that of Hello, which is proved.

    A receiver without a job takes those of any. Raises RemoteProtocolError(JOB).
    """
    if job and senders != job:
        theirs = f"the sender is of job '{senders}'" if senders else "the sender has none"
        raise RemoteProtocolError(
            f"this receiver is of job '{job}', and {theirs}: check where it connects to, and --job of both", Code.JOB
        )
    return senders


def check_receiver(job: str, receivers: str) -> None:
    """Compare the job in Welcome with the sender's own. Raises RemoteProtocolError(JOB)."""
    if receivers != job:
        theirs = f"the receiver is of job '{receivers}'" if receivers else "the receiver does not know jobs: upgrade it"
        ours = f"this sender is of job '{job}'" if job else "this sender has none"
        raise RemoteProtocolError(f"{ours}, and {theirs}: check where it connects to, and --job of both", Code.JOB)
