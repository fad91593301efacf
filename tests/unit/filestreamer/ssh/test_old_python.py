"""What an old Python says that is asked to run a service: one line, before anything that it can't read."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[4]


@pytest.mark.parametrize("service", ["sender", "receiver"])
def test_an_old_python_is_told(service: str) -> None:
    source = (ROOT / service / "__init__.py").read_text(encoding="ascii")
    ast.parse(source, feature_version=(3, 4))
    program = f"import sys; sys.version_info = (3, 6, 8); import {service}.__main__"
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "filestreamer needs Python 3.11 or newer; this is 3.6\n"
