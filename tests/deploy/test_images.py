"""`make images`: for this machine alone or, with a registry, for several platforms, by digest in the manifests.

The engine is a program that writes down what it is asked.
"""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

import pytest

from filestreamer.version import VERSION
from tests.support.kubernetes import container_of, kustomize, parsed

TOP: Final = Path(__file__).parents[2]

ENGINE: Final = """\
#!/bin/sh
echo "$@" >> "$ASKED"
case "$1 $2" in "buildx version") exit "${WITHOUT_BUILDX:-0}";; esac
digest=sha256:$(printf '%s' "$*" | grep -c -- '--target sender' | sed 's/.*/&&&&&&&&/; s/.*/&&&&&&&&/')
while [ $# -gt 1 ]; do
    [ "$1" = --metadata-file ] && printf '{"containerimage.digest": "%s"}' "$digest" > "$2"
    [ "$1 $2" = "--target ${FAILS:-}" ] && exit 17
    shift
done
exit 0
"""


class Checkout:
    """As much of the repository as `make images` needs, with an engine of its own."""

    def __init__(self, folder: Path) -> None:
        self.top = folder / "checkout"
        for name in ("deploy", "proto/filestreamer"):
            shutil.copytree(TOP / name, self.top / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(TOP / "Makefile", self.top)
        self._asked = folder / "asked"
        self._engine = folder / "bin"
        self._engine.mkdir()
        (self._engine / "docker").write_text(ENGINE)
        (self._engine / "docker").chmod(0o755)

    def make(self, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
        path = f"{self._engine}{os.pathsep}{os.environ['PATH']}"
        return subprocess.run(
            ["make", "images", *args],
            cwd=self.top,
            env={**os.environ, "PATH": path, "ASKED": str(self._asked), **env},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def asked(self) -> list[str]:
        return self._asked.read_text().splitlines()

    def images(self) -> set[str]:
        """Return what the pods of a transfer would run."""
        manifests = kustomize(self.top / "deploy/kubernetes/overlays/volume-to-volume")
        return {container_of(job)["image"] for job in parsed(manifests, "Job")}

    def images_of_plugin(self) -> set[str]:
        """Return what the pods of `kubectl filestreamer` would run."""
        plugin = str(self.top / "deploy/kubernetes/kubectl-filestreamer")
        command = [plugin, "copy", "a/x", "b/x", "--dry-run"]
        manifests = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return {container_of(job)["image"] for job in parsed(manifests, "Job")}


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def test_without_a_registry_they_are_for_this_machine_and_a_plain_engine_will_do(checkout: Checkout) -> None:
    done = checkout.make("ARGS=--build-arg BASE=own", WITHOUT_BUILDX="1")

    assert done.returncode == 0, done.stderr
    assert checkout.asked() == [
        f"build --quiet --build-arg BASE=own --file deploy/Dockerfile --target {name} --tag {name} ."
        for name in ("receiver", "sender")
    ]
    assert checkout.images() == {f"filestreamer/{name}:{VERSION}" for name in ("receiver", "sender")}


def test_with_a_registry_they_are_for_amd64_and_arm64_and_pods_run_what_was_pushed(checkout: Checkout) -> None:
    done = checkout.make("REGISTRY=registry.example:5000/team", "ARGS=--build-arg BASE=own")

    assert done.returncode == 0, done.stderr
    _, *builds = checkout.asked()
    for name, build in zip(("receiver", "sender"), builds, strict=True):
        words = build.split()
        assert words[:2] == ["buildx", "build"]
        assert words[words.index("--platform") + 1] == "linux/amd64,linux/arm64"
        assert words[words.index("--target") + 1] == name
        assert words[words.index("--tag") + 1] == f"registry.example:5000/team/{name}:{VERSION}"
        assert words[-3:] == ["--build-arg", "BASE=own", "."]
        assert "--push" in words
    assert checkout.images() == {
        f"registry.example:5000/team/{name}@sha256:{digit * 64}" for name, digit in (("receiver", "0"), ("sender", "1"))
    }
    assert checkout.images_of_plugin() == checkout.images()
    assert checkout.make("REGISTRY=registry.example/other", "PLATFORMS=linux/arm64").returncode == 0  # and once more
    assert {image.partition("@")[0] for image in checkout.images()} == {
        f"registry.example/other/{name}" for name in ("receiver", "sender")
    }
    assert checkout.images_of_plugin() == checkout.images()
    assert "--platform linux/arm64 " in checkout.asked()[-1]


@pytest.mark.parametrize("service", ["receiver", "sender"])
def test_where_one_fails_the_manifests_stay_as_they_were(checkout: Checkout, service: str) -> None:
    before = checkout.images()
    done = checkout.make("REGISTRY=registry.example", FAILS=service)

    assert done.returncode != 0
    assert "17" in done.stderr
    assert checkout.images() == before


def test_without_buildx_nothing_is_pushed(checkout: Checkout) -> None:
    before = checkout.images()
    done = checkout.make("REGISTRY=registry.example", WITHOUT_BUILDX="1")

    assert done.returncode != 0
    assert "buildx is missing" in done.stderr
    assert checkout.asked() == ["buildx version"]
    assert checkout.images() == before
