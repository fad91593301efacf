"""The docstring of a package is the plan of its folder: who opens it for the first time finds each module there."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PACKAGES = [
    init.parent
    for top in ("sender", "receiver", "proto/filestreamer")
    for init in sorted((ROOT / top).rglob("__init__.py"))
]


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: str(package.relative_to(ROOT)))
def test_each_module_is_in_the_plan_of_its_package(package: Path) -> None:
    plan = ast.get_docstring(ast.parse((package / "__init__.py").read_text())) or ""
    modules = {path.stem for path in package.glob("*.py")} - {"__init__"}
    modules |= {path.parent.name for path in package.glob("*/__init__.py")}
    assert modules - set(re.findall(r"\w+", plan)) == set()
