"""A sender at the far side that offers other things than it was asked for: `python -m tests.support.hostile_far serve`.

HOSTILE says what it does. All else is that of the real sender: the receiver can't tell it from one.
"""

import os
import sys
from collections.abc import Callable
from typing import Any

from filestreamer.wire import messages as m

HOW = os.environ["HOSTILE"]


def replace(module: Any, name: str, change: Callable[[Any], Any]) -> None:
    """Have a function of a module return something else."""
    before = getattr(module, name)
    setattr(module, name, lambda *args, **named: change(before(*args, **named)))


if __name__ == "__main__":
    from filestreamer.ssh import lines
    from sender import coordinator, far_side
    from sender.listing import walk

    if HOW == "another name":
        walk.destination_name = lambda *_: b".bashrc"
    elif HOW == "a name with escapes":
        walk.destination_name = lambda *_: b"\x1b]0;owned\x07\x1b[2J"
    elif HOW == "the contents":
        walk.destination_name = lambda *_: b""
    elif HOW == "one file more":
        replace(lines, "read_own", lambda asked: {**asked, "paths": [*asked["paths"], ".ssh"]})
    elif HOW == "another rule":
        replace(coordinator, "make_offer", lambda offer: offer._replace(existing=m.Existing.REPLACE))
    elif HOW == "to remove":
        replace(coordinator, "make_offer", lambda offer: offer._replace(delete=m.Deletion((b"run-17",), ())))
    elif HOW == "what was left out":
        replace(lines, "read_own", lambda asked: {**asked, "exclude": []})
    elif HOW == "to remove what is kept":
        delete = m.Deletion((b"run-17",), ())
        replace(coordinator, "make_offer", lambda offer: offer._replace(delete=delete))
    elif HOW == "to remove all":
        replace(coordinator, "make_offer", lambda offer: offer._replace(delete=m.Deletion((b"",), ())))
    elif HOW == "words":
        sys.stderr.write('{"level": "error", "event": "\\u001b[2J", "reason": "' + "x" * 100_000 + '"}\n')
        sys.stderr.write("\x1b]0;owned\x07 and \x1b[31m red\n" * 3)
        sys.stderr.flush()
    else:
        raise SystemExit(f"HOSTILE={HOW}")
    raise SystemExit(far_side.run())
