"""The pods of the Kubernetes manifests, on an engine: started with what the kubelet would start them with.

There is no cluster here: no scheduler, no Job controller, no network policy. What is the same is all that a container
sees of its manifest: command, user, read-only root, volumes and who owns them, token, limits, names, termination log.
"""

import json
import os
import re
import stat
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import docker
import pytest
import xxhash
from docker.models.containers import Container
from testcontainers.core.network import Network

from tests.support.containers import until
from tests.support.kubernetes import (
    WORKLOADS,
    Object,
    container_of,
    copied,
    objects,
    parsed,
    pod_of,
    role_of,
    variables_of,
    workloads,
)
from tests.support.services import INJECT, UNIT, inject

TOKEN: Final = "a token of the pods"
SIZE: Final = 32 * 2**20
WITH_USERS: Final = "overlays/standing-receiver users"
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

    def sees(self, pattern: str) -> bool:
        """Whether it has a file of such a name: some of what a pod has is for its user alone."""
        script = f"import glob, sys; sys.exit(not glob.glob({pattern!r}))"
        return self.container.exec_run(["python3", "-c", script]).exit_code == 0

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
    """Starts pods of builds, or of copies. Its volumes are directories, by the names of their claims."""

    def __init__(self, folder: Path, network: Network) -> None:
        self.secrets: dict[str, dict[str, str]] = {}
        """Those that pods mount, by name."""
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
        self,
        build: str | list[Object],
        workload: Object,
        *,
        settings: Mapping[str, object] | None = None,
        index: int | None = None,
        token: str = TOKEN,
        fault: Mapping[str, str] | None = None,
    ) -> Pod:
        """Start a pod.

        `settings` go over the sender's in config.json, `index` is that of an Indexed Job, `token` is in the Secret that
        variables come from, `fault` is of `inject`.
        """
        every = objects(build) if isinstance(build, str) else build
        pod, spec = pod_of(workload), container_of(workload)
        here = self._folder / f"pod-{len(self._pods)}"
        here.mkdir()
        log = here / "termination-log"
        log.touch()
        log.chmod(0o666)  # as the kubelet does
        mounts = {str(log): {"bind": "/dev/termination-log", "mode": "rw"}}
        for mount in spec["volumeMounts"]:
            source, is_read_only = self._source_of(every, pod, mount["name"], here, settings or {})
            mode = "ro" if is_read_only or mount.get("readOnly") else "rw"
            mounts[str(source)] = {"bind": mount["mountPath"], "mode": mode}
        env = variables_of(workload, token)
        if fault is not None:
            mounts[str(INJECT)] = {"bind": "/inject", "mode": "ro"}
            env |= {**fault, "PYTHONPATH": "/inject"}
        args = list(spec.get("args", []))
        if index is not None:
            env["JOB_COMPLETION_INDEX"] = str(index)
            args = [arg.replace("$(JOB_COMPLETION_INDEX)", str(index)) for arg in args]
        names = [item["metadata"]["name"] for item in every if item["kind"] == "Service"]
        memory = spec["resources"]["limits"]["memory"]
        is_receiver = "command" not in spec and role_of(workload) == "receiver"
        client, network = docker.from_env(), self._network.name
        container = client.containers.create(
            spec["image"].removeprefix("filestreamer/").partition(":")[0],
            spec["command"][1:] if "command" in spec else args,
            entrypoint=spec["command"][:1] if "command" in spec else None,
            environment=env,
            user=f"{pod['securityContext']['runAsUser']}:{pod['securityContext']['runAsGroup']}",
            group_add=[str(group)] if (group := pod["securityContext"].get("fsGroup")) else [],
            read_only=spec["securityContext"]["readOnlyRootFilesystem"],
            cap_drop=spec["securityContext"]["capabilities"]["drop"],
            cap_add=spec["securityContext"]["capabilities"].get("add", []),
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
        self, every: list[Object], pod: Object, name: str, here: Path, settings: Mapping[str, object]
    ) -> tuple[Path, bool]:
        """Return what is mounted, and whether only to be read."""
        (volume,) = (volume for volume in pod["volumes"] if volume["name"] == name)
        if "persistentVolumeClaim" in volume:
            claim = volume["persistentVolumeClaim"]
            return self.volume(claim["claimName"]), claim.get("readOnly", False)
        place = here / name
        place.mkdir(mode=0o755)
        if "secret" in volume:
            self._mount_secret(volume["secret"], place)
            return place, True
        (config,) = (
            item["data"]
            for item in every
            if item["kind"] == "ConfigMap" and item["metadata"]["name"] == volume["configMap"]["name"]
        )
        for file, content in config.items():
            document = json.loads(content)
            document.setdefault("sender", {}).update(settings)
            (place / file).write_text(json.dumps(document))
        return place, True

    def _mount_secret(self, secret: Object, place: Path) -> None:
        """Lay a Secret out as the kubelet does: files of the group fsGroup, and links that lead to them."""
        (place / "..now").mkdir()
        (place / "..data").symlink_to("..now")
        for key, value in self.secrets[secret["secretName"]].items():
            file = place / "..now" / key
            file.write_text(value)
            file.chmod(secret["defaultMode"] if os.getuid() == 0 else 0o444)
            if os.getuid() == 0:
                os.chown(file, 0, 10001)
            (place / key).symlink_to(f"..data/{key}")

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


def job(build: str | list[Object], role: str) -> Object:
    every = workloads(build) if isinstance(build, str) else [item for item in build if item["kind"] in WORKLOADS]
    (found,) = (item for item in every if role_of(item) == role)
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


class Found(NamedTuple):
    """What there is to know of an entry of a volume."""

    kind: int
    mode: int
    mtime_ns: int
    links: int
    content: bytes
    """The digest of what is in it, or where it leads."""
    owner: tuple[int, int] | None


def everything_in(volume: Path, *, owners: bool = False) -> dict[str, Found]:
    """Return all that lies below a directory, by path, but for the receipts of what was received there."""
    found = {}
    for path in sorted(volume.rglob("*")):
        if path.relative_to(volume).parts[0] == ".filestreamer":
            assert path.suffix in ("", ".receipt", ".job")
            continue
        status = path.lstat()
        content = os.fsencode(os.readlink(path)) if path.is_symlink() else b""
        if stat.S_ISREG(status.st_mode):
            content = xxhash.xxh3_128_digest(path.read_bytes())
        found[str(path.relative_to(volume))] = Found(
            stat.S_IFMT(status.st_mode),
            # A volume with fsGroup has setgid directories, and so have those below.
            status.st_mode & (0o777 if stat.S_ISDIR(status.st_mode) else 0o7777),
            status.st_mtime_ns,
            status.st_nlink,
            content,
            (status.st_uid, status.st_gid) if owners else None,
        )
    return found


def test_a_whole_volume_moves_but_for_what_is_its_file_systems(node: Node) -> None:
    build = "overlays/volume-to-volume"
    fill_source(node)
    source, destination = node.volume("source"), node.volume("destination")
    (source / "deep/er/empty").mkdir(parents=True)
    (source / "deep/script").write_bytes(b"#!/bin/sh")
    (source / "deep/script").chmod(0o755)
    (source / "deep/er/link").symlink_to("../script")
    (source / "deep/er/script").hardlink_to(source / "deep/script")
    expected = everything_in(source)
    (source / "lost+found").mkdir(mode=0o700)
    (destination / "lost+found").mkdir(mode=0o700)
    there = everything_in(destination)
    receiver, sender = (node.start(build, job(build, role)) for role in ("receiver", "sender"))

    assert (sender.exit_code(), receiver.exit_code()) == (0, 0)
    assert expected | there == everything_in(destination)
    assert sender.message()["root_digest"] == receiver.message()["root_digest"] is not None


def test_one_file_of_a_volume_moves_alone(node: Node) -> None:
    build = "overlays/volume-to-volume"
    content = fill_source(node)
    (node.volume("source") / "other").write_bytes(b"other")
    receiver = node.start(build, job(build, "receiver"))
    sender = node.start(build, job(build, "sender"), settings={"input_file": "/data/example.bin"})

    assert (sender.exit_code(), receiver.exit_code()) == (0, 0)
    assert list(everything_in(node.volume("destination"))) == ["example.bin"]
    assert (node.volume("destination") / "example.bin").read_bytes() == content


def test_what_the_sender_may_not_read_is_told_and_the_rest_arrives(node: Node) -> None:
    """Both Jobs fail, and both results say what was not moved."""
    build = "overlays/volume-to-volume"
    source = volume_of_others(node)
    receiver, sender = (node.start(build, job(build, role)) for role in ("receiver", "sender"))

    assert (sender.exit_code(), receiver.exit_code()) == (5, 5)
    message = sender.message()
    assert {"/data/closed", "/data/home"} == {skipped["path"] for skipped in message["skipped"]}
    assert {"closed", "home"} == {skipped["path"] for skipped in receiver.message()["skipped"]}
    assert message["skipped_kinds"] == receiver.message()["skipped_kinds"] == {"unreadable": 2}
    assert message["committed"] is receiver.message()["committed"] is True
    assert (node.volume("destination") / "open").read_bytes() == (source / "open").read_bytes()
    assert sorted(everything_in(node.volume("destination"))) == ["nothing", "open"]


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


def test_a_pod_that_is_killed_and_one_whose_settings_are_wrong_say_so(node: Node) -> None:
    build = "overlays/volume-to-volume"
    receiver = node.start(build, job(build, "receiver"))
    until(lambda: receiver.is_ready(9464), "the receiver is not ready")
    receiver.container.kill("SIGKILL")
    sender = node.start(build, job(build, "sender"), settings={"unheard_of": 1})

    assert (receiver.exit_code(), sender.exit_code()) == (137, 2)  # one that is tried again, and one that fails the Job
    assert receiver.message()["error"]["code"] == "killed"
    assert "unheard_of" in sender.message()["error"]["message"]


def test_a_receiver_that_is_killed_when_everything_is_in_place_is_replaced_and_done(node: Node) -> None:
    """Between the commit and its end: the sender has not heard, and the next pod of the Job finds the receipt."""
    build = "overlays/volume-to-volume"
    content = fill_source(node)
    destination = node.volume("destination")
    killed = node.start(build, job(build, "receiver"), fault=inject("rename", "then-until:/never", path=".receipt"))
    sender = node.start(build, job(build, "sender"))
    until(lambda: killed.sees("/data/.filestreamer/*.receipt"), "nothing is committed", 6 * UNIT)
    assert (destination / "example.bin").read_bytes() == content
    killed.container.kill("SIGKILL")
    assert (killed.exit_code(), killed.message()["error"]["code"]) == (137, "killed")  # the Job starts another
    successor = node.start(build, job(build, "receiver"))

    assert (sender.exit_code(), successor.exit_code()) == (0, 0)
    assert b"receipt_found" in successor.container.logs()
    sent, received = sender.message(), successor.message()
    assert sent["committed"] is received["committed"] is True
    assert sent["root_digest"] == received["root_digest"] is not None
    assert (received["files"], received["bytes"], received["sent_bytes"]) == (1, SIZE, 0)
    assert (destination / "example.bin").read_bytes() == content


def test_the_receiver_of_another_instance_refuses_a_sender_that_is_led_to_it(node: Node) -> None:
    """They have one token, and one network: only the names of their jobs are different."""
    build = "overlays/volume-to-volume"
    photos = parsed(copied(build, nameSuffix="-photos"))
    content = fill_source(node)
    receiver = node.start(build, job(build, "receiver"))
    misled = job(photos, "sender")
    (to,) = (item for item in container_of(misled)["env"] if item["name"] == "FILESTREAMER_SENDER_TO")
    assert to["value"] == "filestreamer-receiver-photos"
    to["value"] = "filestreamer-receiver"
    refused = node.start(photos, misled)

    assert refused.exit_code() == 3
    error = refused.message()["error"]
    assert error["code"] == "job"
    assert "'filestreamer'" in error["message"]
    assert "'filestreamer-photos'" in error["message"]
    assert everything_in(node.volume("destination")) == {}
    sender = node.start(build, job(build, "sender"))  # it goes on waiting for its own
    assert (sender.exit_code(), receiver.exit_code()) == (0, 0)
    assert (node.volume("destination") / "example.bin").read_bytes() == content


def test_each_user_of_a_standing_receiver_has_a_directory(node: Node) -> None:
    """The tokens are a mounted Secret; files of one name get in nobody's way, and who has no token is refused."""
    build = "overlays/sender"
    tokens = {user: f"the token of {user}, of more than 32 characters" for user in ("alice", "bob", "mallory")}
    node.secrets["filestreamer-users"] = {user: tokens[user] for user in ("alice", "bob")}
    node.start(WITH_USERS, job(WITH_USERS, "receiver"))
    senders = {}
    for user, token in tokens.items():
        (node.volume("source") / user).write_text(f"of {user}")
        settings = {"input_file": f"/data/{user}", "as": "notes"}
        senders[user] = node.start(build, job(build, "sender"), settings=settings, token=token)

    assert {user: sender.exit_code() for user, sender in senders.items()} == {"alice": 0, "bob": 0, "mallory": 3}
    assert senders["mallory"].message()["error"]["code"] == "token"
    destination = node.volume("destination")
    arrived = {str(path.relative_to(destination)): path.read_text() for path in destination.glob("*/[!.]*")}
    assert arrived == {"alice/notes": "of alice", "bob/notes": "of bob"}


def test_a_file_that_is_not_there_fails_the_job_with_its_name(node: Node) -> None:
    build = "overlays/volume-to-volume"
    receiver = node.start(build, job(build, "receiver"))
    sender = node.start(build, job(build, "sender"), settings={"input_file": "/data/example.bin"})

    assert sender.exit_code() == 4
    assert "/data/example.bin" in sender.message()["error"]["message"]
    assert receiver.exit_code() == 4  # it was told, and waits for nobody
    assert "/data/example.bin" in receiver.message()["error"]["message"]


def test_the_pods_of_an_indexed_job_share_a_volume_and_a_lost_one_is_retried_alone(node: Node) -> None:
    build = "overlays/shards"
    fill_source(node)
    for number in range(40):
        path = node.volume("source") / f"{number % 3}" / f"{number}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes([number]) * 1000)
    receiver = node.start(build, job(build, "receiver"))
    count = job(build, "sender")["spec"]["completions"]

    def start(index: int, **settings: object) -> Pod:
        return node.start(build, job(build, "sender"), settings={"chunk_size": "1MiB", **settings}, index=index)

    lost, *others = [start(index, **({} if index else {"rate_limit": "1MiB/s"})) for index in range(count)]
    until(lambda: lost.is_ready(9465) and lost.acknowledged_bytes(9465) > 0, "it moves nothing")
    lost.container.kill("SIGKILL")
    assert (lost.exit_code(), [sender.exit_code() for sender in others]) == (137, [0] * len(others))
    assert not any(sender.message()["committed"] for sender in others)
    again = start(0)

    assert (again.exit_code(), receiver.exit_code()) == (0, 0)
    assert everything_in(node.volume("destination")) == everything_in(node.volume("source"))
    for last in (again.message(), receiver.message()):
        assert last["committed"] is True
        assert (last["job"]["shards_finished"], last["job"]["files"], last["job"]["bytes"]) == (4, 41, SIZE + 40_000)


# --- owners


WITH_OWNERS: Final = "overlays/volume-to-volume owners"


def volume_of_others(node: Node) -> Path:
    """Fill the volume `source` with what belongs to several users, none of whom is root or the images' user."""
    if os.getuid() != 0:
        pytest.skip("only root may give files away")
    source = node.volume("source")
    (source / "open").write_bytes(b"open to everybody")
    (source / "closed").write_bytes(b"closed to everybody")
    (source / "nothing").touch()
    (source / "home/private").mkdir(parents=True)
    (source / "home/private/key").write_bytes(os.urandom(1 << 20))
    (source / "home/large").write_bytes(os.urandom(9 << 20))
    (source / "home/link").symlink_to("private/key")
    (source / "home/hard").hardlink_to(source / "home/large")
    (source / "home/shut").mkdir()
    (source / "home/shut/in").write_bytes(b"in")
    owned: tuple[tuple[str, int, int, int], ...] = (
        ("open", 3001, 3101, 0o644),
        ("closed", 3002, 3102, 0o000),
        ("nothing", 3003, 3001, 0o200),
        ("home/private/key", 3003, 3103, 0o400),
        ("home/private", 3003, 3103, 0o700),
        ("home/large", 3003, 3103, 0o6750),
        ("home/shut/in", 3005, 0, 0o000),
        ("home/shut", 3005, 3105, 0o000),
        ("home", 3001, 3101, 0o751),
    )
    for name, uid, gid, mode in owned:
        os.chown(source / name, uid, gid)
        (source / name).chmod(mode)
    os.chown(source / "home/link", 3004, 3104, follow_symlinks=False)
    return source


def keep_to_its_owner(volume: Path) -> None:
    """Let nobody else look into a volume, as where its storage gives it to the user of the workload."""
    os.chown(volume, 3001, 3101)
    volume.chmod(0o700)


def test_owners_are_kept_whoever_they_are_and_whatever_they_let_others_do(node: Node) -> None:
    source, destination = volume_of_others(node), node.volume("destination")
    for volume in (source, destination):
        keep_to_its_owner(volume)
    receiver, sender = (node.start(WITH_OWNERS, job(WITH_OWNERS, role)) for role in ("receiver", "sender"))

    assert (sender.exit_code(), receiver.exit_code()) == (0, 0)
    assert everything_in(source, owners=True) == everything_in(destination, owners=True)
    assert sender.message()["skipped_files"] == 0


def test_owners_are_kept_where_a_run_meets_what_an_earlier_one_left(node: Node) -> None:
    source, destination = volume_of_others(node), node.volume("destination")
    for volume in (source, destination):
        keep_to_its_owner(volume)
    for lost in ("home/shut/in", "home/private/key", "closed"):
        receiver, sender = (node.start(WITH_OWNERS, job(WITH_OWNERS, role)) for role in ("receiver", "sender"))
        assert (sender.exit_code(), receiver.exit_code()) == (0, 0)
        assert everything_in(source, owners=True) == everything_in(destination, owners=True)
        (destination / lost).unlink()
        os.chown(destination / "home/large", 3009, 3009)


@pytest.mark.parametrize(
    ("role", "capability"),
    [
        ("receiver", "CHOWN"),
        ("receiver", "FOWNER"),
        ("receiver", "FSETID"),
        ("receiver", "DAC_OVERRIDE"),
        ("sender", "DAC_OVERRIDE"),
    ],
)
def test_no_capability_of_the_owners_is_too_many(node: Node, role: str, capability: str) -> None:
    source, destination = volume_of_others(node), node.volume("destination")
    for volume in (source, destination):
        keep_to_its_owner(volume)
    jobs = {role: job(WITH_OWNERS, role) for role in ("receiver", "sender")}
    container_of(jobs[role])["securityContext"]["capabilities"]["add"].remove(capability)
    pods = {role: node.start(WITH_OWNERS, workload) for role, workload in jobs.items()}

    exit_code, told = pods[role].exit_code(), pods[role].message()
    if capability == "DAC_OVERRIDE":
        assert exit_code == 4
        assert "denied" in told["error"]["message"]
        return
    assert (exit_code, set(told["skipped_kinds"])) == (5, {"attribute"})
    assert capability != "FOWNER" or told["warnings"]  # modes and times need it, too: nobody asked for these
    assert {path: found.content for path, found in everything_in(source).items()} == {
        path: found.content for path, found in everything_in(destination).items()
    }
