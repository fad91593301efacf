"""What the images install: everything that pyproject.toml asks for, in a version that it allows, pinned by hash."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
ASKED: dict[str, list[str]] = {
    "requirements.txt": PROJECT["project"]["dependencies"],
    "requirements-build.txt": PROJECT["build-system"]["requires"],
}


def pinned(name: str) -> dict[str, str]:
    """Return the version of each package in one of the files; each has a hash."""
    text = (ROOT / "deploy" / name).read_text()
    marker = r"(?: ; [^\\\n]+)?"  # which Pythons need it
    hashes = r"(?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+"
    entries = re.findall(rf"^([\w.-]+)==(\S+){marker} \\\n({hashes})", text, re.MULTILINE)
    assert len(entries) == text.count("==")
    return {canonicalize_name(package): version for package, version, _ in entries}


@pytest.mark.parametrize("name", ASKED)
def test_pinned_by_hash_as_asked_for(name: str) -> None:
    """Where this fails, `make lock` makes it right."""
    versions = pinned(name)
    for requirement in map(Requirement, ASKED[name]):
        assert requirement.specifier.contains(versions[canonicalize_name(requirement.name)]), requirement


@pytest.mark.parametrize("name", ASKED)
def test_no_address_of_an_index(name: str) -> None:
    """Where the packages come from is for who builds to say."""
    text = (ROOT / "deploy" / name).read_text()
    assert not re.search(r"://|--(index-url|extra-index-url|find-links)", text)
