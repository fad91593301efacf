"""The pods of the Kubernetes manifests, on an engine: started with what the kubelet would start them with.

There is no cluster here: no scheduler, no Job controller, no network policy. What is the same is all that a container
sees of its manifest: command, user, read-only root, volumes and who owns them, token, limits, names, termination log.
"""

import json
import os
import re
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import docker
import pytest
from docker.models.containers import Container
from testcontainers.core.network import Network

from tests.support.containers import until
from tests.support.kubernetes import Object, container_of, objects, pod_of, role_of, workloads
from tests.support.services import UNIT

TOKEN: Final = "a token of the pods"
SIZE: Final = 32 * 2**20
UNITS: Final = {"Mi": 2**20, "Gi": 2**30}


class Pod:
    """One container of the one that a pod has."""

    def __init__(self, container: Container, termination_log: Path) -> None:
        self.container = container
        self._termination_log = termination_log

    def exit_code(self) -> int:
        """Wait for its end."""
        until(self._has_ended, "the pod still runs", 6 * UNIT, lambda: self.container.logs().decode())
        return int(self.container.attrs["State"]["ExitCode"])

    def _has_ended(self) -> bool:
        self.container.reload()
        return bool(self.container.status == "exited")

    def message(self) -> dict[str, Any]:
        """Return its termination message: no more than Kubernetes would keep of it."""
        found: dict[str, Any] = json.loads(self._termination_log.read_bytes()[-4096:])
        return found

    def is_ready(self, port: int) -> bool:
        """Ask its readiness probe."""
        try:
            return self._get(port, "/readyz") == "ready\n"
        except OSError:  # nobody listens yet, or an answer above 399
            return False

    def acknowledged_bytes(self, port: int) -> float:
        """Scrape it once."""
        (value,) = re.findall(
            r"^filestreamer_\w+_transfer_acknowledged_bytes{.*} (.*)$", self._get(port, "/metrics"), re.M
        )
        return float(value)

    def _get(self, port: int, path: str) -> str:
        self.container.reload()
        (network,) = self.container.attrs["NetworkSettings"]["Networks"].values()
        with urllib.request.urlopen(f"http://{network['IPAddress']}:{port}{path}", timeout=UNIT) as answer:
            return str(answer.read().decode())


class Node:
    """Starts pods of one build. Its volumes are directories, by the names of their claims."""

    def __init__(self, folder: Path, network: Network) -> None:
        self._folder = folder
        self._network = network
        self._pods: list[Pod] = []

    def volume(self, claim: str) -> Path:
        """Return the volume of a claim: as the kubelet leaves it for fsGroup."""
        path = self._folder / "volumes" / claim
        if not path.exists():
            path.mkdir(parents=True)
            path.chmod(0o777)
            if os.getuid() == 0:
                os.chown(path, 0, 10001)
                path.chmod(0o2770)
        return path

    def start(
        self, build: str, workload: Object, *, settings: Mapping[str, object] | None = None, index: int | None = None
    ) -> Pod:
        """Start a pod; `settings` go over the sender's in config.json, `index` is that of an Indexed Job."""
        pod, spec = pod_of(workload), container_of(workload)
        here = self._folder / f"pod-{len(self._pods)}"
        here.mkdir()
        log = here / "termination-log"
        log.touch()
        log.chmod(0o666)  # as the kubelet does
        mounts = {str(log): {"bind": "/dev/termination-log", "mode": "rw"}}
        for mount in spec["volumeMounts"]:
            source, is_read_only = self._source_of(build, pod, mount["name"], here, settings or {})
            mode = "ro" if is_read_only or mount.get("readOnly") else "rw"
            mounts[str(source)] = {"bind": mount["mountPath"], "mode": mode}
        env = {item["name"]: TOKEN for item in spec.get("env", [])}
        args = list(spec.get("args", []))
        if index is not None:
            env["JOB_COMPLETION_INDEX"] = str(index)
            args = [arg.replace("$(JOB_COMPLETION_INDEX)", str(index)) for arg in args]
        names = [item["metadata"]["name"] for item in objects(build, "Service")]
        memory = spec["resources"]["limits"]["memory"]
        is_receiver = "command" not in spec and role_of(workload) == "receiver"
        client, network = docker.from_env(), self._network.name
        container = client.containers.create(
            spec["image"].removeprefix("filestreamer/").partition(":")[0],
            spec["command"][1:] if "command" in spec else args,
            entrypoint=spec["command"][:1] if "command" in spec else None,
            environment=env,
            user=f"{pod['securityContext']['runAsUser']}:{pod['securityContext']['runAsGroup']}",
            group_add=[str(pod["securityContext"]["fsGroup"])],
            read_only=spec["securityContext"]["readOnlyRootFilesystem"],
            cap_drop=spec["securityContext"]["capabilities"]["drop"],
            security_opt=["no-new-privileges"],
            mem_limit=int(memory[:-2]) * UNITS[memory[-2:]],
            volumes=mounts,
            network=network,
            networking_config={network: client.api.create_endpoint_config(aliases=names if is_receiver else [])},
        )
        made = Pod(container, log)
        self._pods.append(made)
        container.start()
        return made

    def _source_of(
        self, build: str, pod: Object, name: str, here: Path, settings: Mapping[str, object]
    ) -> tuple[Path, bool]:
        """Return what is mounted, and whether only to be read."""
        (volume,) = (volume for volume in pod["volumes"] if volume["name"] == name)
        if "persistentVolumeClaim" in volume:
            claim = volume["persistentVolumeClaim"]
            return self.volume(claim["claimName"]), claim.get("readOnly", False)
        (config,) = (
            item["data"]
            for item in objects(build, "ConfigMap")
            if item["metadata"]["name"] == volume["configMap"]["name"]
        )
        place = here / name
        place.mkdir(mode=0o755)
        for file, content in config.items():
            document = json.loads(content)
            document["sender"].update(settings)
            (place / file).write_text(json.dumps(document))
        return place, True

    def end(self) -> None:
        """Remove every container."""
        for pod in self._pods:
            pod.container.remove(force=True)


@pytest.fixture
def node(images: None, tmp_path: Path) -> Iterator[Node]:
    """Return a node whose pods end with the test."""
    with Network() as network:
        made = Node(tmp_path, network)
        try:
            yield made
        finally:
            made.end()


def job(build: str, role: str) -> Object:
    (found,) = (item for item in workloads(build) if role_of(item) == role)
    return found


def fill_source(node: Node) -> bytes:
    """Run the Job of demo-source, with fewer bytes; return what is in the file."""
    (fill,) = objects("demo-source", "Job")
    script = container_of(fill)["command"][-1]
    container_of(fill)["command"][-1] = script.replace("range(1024)", f"range({SIZE >> 20})")
    assert node.start("demo-source", fill).exit_code() == 0
    content = (node.volume("source") / "example.bin").read_bytes()
    assert len(content) == SIZE
    return content


def test_volume_to_volume_whoever_is_first(node: Node) -> None:
    build = "overlays/volume-to-volume"
    content = fill_source(node)
    sender = node.start(build, job(build, "sender"))
    assert not sender.is_ready(9465)
    receiver = node.start(build, job(build, "receiver"))

    assert (sender.exit_code(), receiver.exit_code()) == (0, 0)
    assert (node.volume("destination") / "example.bin").read_bytes() == content
    sent, received = sender.message(), receiver.message()
    assert sent["root_digest"] == received["root_digest"] is not None
    assert sent["committed"] is received["committed"] is True


def test_an_evicted_sender_says_so_and_its_successor_resumes(node: Node) -> None:
    build = "overlays/volume-to-volume"
    content = fill_source(node)
    receiver = node.start(build, job(build, "receiver"))
    until(lambda: receiver.is_ready(9464), "the receiver is not ready")
    sender = node.start(build, job(build, "sender"), settings={"rate_limit": "8MiB/s", "chunk_size": "1MiB"})
    until(lambda: sender.is_ready(9465), "the sender does not find its receiver")
    until(lambda: sender.acknowledged_bytes(9465) > 0, "the sender does not move")
    sender.container.kill("SIGTERM")
    assert sender.exit_code() == 143  # nothing that fails a Job
    assert sender.message()["status"] == "interrupted"
    successor = node.start(build, job(build, "sender"), settings={"chunk_size": "1MiB"})

    assert (successor.exit_code(), receiver.exit_code()) == (0, 0)
    assert 0 < successor.message()["held_bytes"] < SIZE
    assert (node.volume("destination") / "example.bin").read_bytes() == content


def test_a_file_that_is_not_there_fails_the_job_with_its_name(node: Node) -> None:
    build = "overlays/volume-to-volume"
    sender = node.start(build, job(build, "sender"))

    assert sender.exit_code() == 4
    assert "/data/example.bin" in sender.message()["error"]["message"]


def test_the_pods_of_an_indexed_job_share_a_file(node: Node) -> None:
    build = "overlays/shards"
    content = fill_source(node)
    receiver = node.start(build, job(build, "receiver"))
    count = job(build, "sender")["spec"]["completions"]
    senders = [
        node.start(build, job(build, "sender"), settings={"chunk_size": "1MiB"}, index=index) for index in range(count)
    ]

    assert [sender.exit_code() for sender in senders] == [0] * count
    assert receiver.exit_code() == 0
    assert sum(sender.message()["sent_bytes"] for sender in senders) == SIZE
    assert (node.volume("destination") / "example.bin").read_bytes() == content
