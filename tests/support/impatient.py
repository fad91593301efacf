"""A service with short bounds that are no settings: `python -m tests.support.impatient COMMAND ARGS`.

IMPATIENT says which, as JSON: {"filestreamer.wire.limits.STRANGER_SECONDS": 1}.
They are set before anything reads them.
"""

import importlib
import json
import os
import sys

for _name, _value in json.loads(os.environ["IMPATIENT"]).items():
    _module, _, _constant = _name.rpartition(".")
    getattr(importlib.import_module(_module), _constant)  # else nothing would be any shorter
    setattr(importlib.import_module(_module), _constant, _value)

if __name__ == "__main__":
    sys.argv[:2] = sys.argv[1:2]
    importlib.import_module(f"{sys.argv[0]}.__main__").main()
