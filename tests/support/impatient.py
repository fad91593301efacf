"""The receiver with short bounds that are no settings: `python -m tests.support.impatient ARGS`.

IMPATIENT says which, as JSON: {"filestreamer.wire.limits.STRANGER_SECONDS": 1}.
They are set before anything reads them.
"""

import importlib
import json
import os

for _name, _value in json.loads(os.environ["IMPATIENT"]).items():
    _module, _, _constant = _name.rpartition(".")
    setattr(importlib.import_module(_module), _constant, _value)

from receiver.__main__ import main  # noqa: E402 - after that

if __name__ == "__main__":
    main()
