"""The name of a job, which groups the shards of a tree (proto/README.md, "Shards of trees")."""

import re
from typing import Final

from filestreamer.wire import limits

_NAME: Final = re.compile(rf"[a-z0-9.-]{{1,{limits.JOB_NAME_BYTES}}}")


def is_job_name(text: str) -> bool:
    """Whether a text is the name of a job: 1 to JOB_NAME_BYTES characters of what Kubernetes takes in names."""
    return _NAME.fullmatch(text) is not None
