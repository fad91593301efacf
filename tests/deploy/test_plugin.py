"""kubectl-filestreamer: what it renders, and what it does with the answers of a cluster.

The plugin and the kubectl are the real ones; the cluster is recorded (tests/support/cluster.py).
"""

import functools
import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import kubernetes_validate
import pytest

import receiver.settings
import sender.settings
from filestreamer.version import VERSION
from tests.support.cluster import (
    VERSION_OF_SCHEMAS,
    Cluster,
    Request,
    ended,
    pending,
    progress,
    result,
    running,
    serving,
    unschedulable,
)
from tests.support.kubernetes import (
    KUBECTL,
    TOP,
    Object,
    container_of,
    labels_of,
    matches,
    objects,
    parsed,
    peers_of,
    pod_of,
    role_of,
    selectors_of,
)
from tests.support.prometheus import wait_for
from tests.support.services import HANG, held_port
from tests.support.terminal import ENDED, terminals

PLUGIN: Final = TOP / "kubectl-filestreamer"
TOKEN: Final = "t" * 64


def _environment(home: Path, **more: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("FILESTREAMER_")}
    path = f"{KUBECTL.parent}{os.pathsep}{os.environ['PATH']}"
    return {
        **kept,
        "HOME": str(home),
        "PATH": path,
        "KUBECONFIG": str(home / "kubeconfig"),
        "TMPDIR": str(home),
        **more,
    }


@pytest.fixture(autouse=True)
def home(tmp_path: Path) -> Path:
    return tmp_path


def render(home: Path, *arguments: str, shell: str = "sh") -> str:
    command: list[str | Path] = [shell, PLUGIN, *arguments, "--dry-run"]
    if "--" in arguments:
        at = arguments.index("--")
        command = [shell, PLUGIN, *arguments[:at], "--dry-run", *arguments[at:]]
    done = subprocess.run(
        command,
        env=_environment(home),
        capture_output=True,
        text=True,
        check=False,
        timeout=HANG,
        stdin=subprocess.DEVNULL,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@functools.cache
def manifests(*arguments: str) -> str:
    """Return what is rendered of arguments, which is valid."""
    with TemporaryDirectory() as home:
        text = render(Path(home), *arguments)
    for item in parsed(text):
        kubernetes_validate.validate(item, VERSION_OF_SCHEMAS, strict=True)
    return text


def rendered(*arguments: str) -> list[Object]:
    return parsed(manifests(*arguments))


def jobs_of(found: list[Object]) -> dict[str, Object]:
    return {role_of(item): item for item in found if item["kind"] == "Job"}


class Running:
    """A run of the plugin against clusters."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.command: list[str | Path] = ["sh", PLUGIN]
        self.clusters = {"here": Cluster()}
        self.cluster = self.clusters["here"]
        self.cluster.add_claim("a/data")
        self.cluster.add_claim("b/data")
        self.variables = {"FILESTREAMER_INTERVAL": "0.05", "FILESTREAMER_STARTING": "0", "GOGC": "off"}

    def add_cluster(self) -> Cluster:
        self.clusters["there"] = Cluster()
        return self.clusters["there"]

    def serve(self, stack: ExitStack) -> None:
        stack.enter_context(serving(self.clusters, self.home / "kubeconfig"))

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*self.command, *arguments],
            env=_environment(self.home, **self.variables),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def follow(self, *arguments: str) -> "Done":
        """Run it where the copy is under way, as an earlier run of the plugin has begun it."""
        self.cluster.adopt(rendered(*arguments))
        done = self.run(*arguments)
        assert "is under way already: following it" in done.err
        return done

    def run(self, *arguments: str) -> "Done":
        with ExitStack() as stack:
            self.serve(stack)
            process = self.start(*arguments)
            out, err = process.communicate(timeout=HANG)
            return Done(process.returncode, out, err)


NO_GRACE: Final = {"FILESTREAMER_GRACE": "0"}
"""For a side that is ended by nobody but the plugin."""


class Done:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def results(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines() if line.startswith("{")]


@pytest.fixture
def run(home: Path) -> Running:
    return Running(home)


# --- what it renders

RENDERED: Final = (
    (),
    ("--owner",),
    ("--delete",),
    ("--path", "photos/"),
    ("--shards", "4"),
    ("--tolerate", "vanished,changed"),
    ("--to-context", "there", "--context", "here"),
    ("--to-context", "there", "--context", "here", "--service", "NodePort"),
    ("--to-context", "there", "--context", "here", "--address", "lb.example:443"),
    ("--to-context", "there", "--context", "here", "--listen", "source"),
    ("--", "--exclude", "*.tmp", "--rate-limit=100MiB/s"),
)


@pytest.mark.parametrize("options", RENDERED, ids=" ".join)
@pytest.mark.parametrize("command", ["copy", "verify"])
def test_it_renders_what_kubernetes_and_the_services_know(command: str, options: tuple[str, ...]) -> None:
    if command == "verify" and {"--shards", "source"} & set(options):
        pytest.skip("wrong usage")

    found = rendered(command, "a/data", "b/data", *options)

    for item in found:
        assert item["kind"] in ("Job", "Service", "NetworkPolicy")
        assert len(item["metadata"]["name"]) <= 63
    for role, job in jobs_of(found).items():
        arguments = [text.replace("$(JOB_COMPLETION_INDEX)", "0") for text in container_of(job)["args"]]
        environment = {each["name"]: "filestreamer-1" for each in container_of(job)["env"]}
        parse = sender.settings.parse if role == "sender" else receiver.settings.parse
        _, warnings = parse(arguments, {**environment, "FILESTREAMER_TOKEN": TOKEN})
        assert warnings == []


def _without_settings(container: Object) -> Object:
    """Return what of a container does not depend on how its service is set."""
    kept = {key: value for key, value in container.items() if key not in ("args", "env", "volumeMounts", "image")}
    kept["ports"] = sorted(kept["ports"], key=lambda port: str(port["name"]))
    kept["volumeMounts"] = [mount for mount in container["volumeMounts"] if mount["name"] != "config"]
    return kept


@pytest.mark.parametrize("role", ["sender", "receiver"])
@pytest.mark.parametrize("with_owner", [False, True])
def test_its_pods_are_those_of_the_manifests(role: str, with_owner: bool) -> None:
    build = "overlays/volume-to-volume owners" if with_owner else "overlays/volume-to-volume"
    (theirs,) = (item for item in objects(build, "Job") if role_of(item) == role)
    options = ("--owner",) if with_owner else ()
    ours = jobs_of(rendered("copy", "a/source", "a/destination", *options))[role]

    without = ("template", "suspend")
    assert {key: value for key, value in ours["spec"].items() if key not in without} == {
        key: value for key, value in theirs["spec"].items() if key not in without
    }
    pods = [pod_of(ours), pod_of(theirs)]
    for pod in pods:
        pod["volumes"] = [volume for volume in pod["volumes"] if volume["name"] != "config"]
    our_container, their_container = (pod.pop("containers")[0] for pod in pods)
    assert pods[0] == pods[1]
    assert _without_settings(our_container) == _without_settings(their_container)
    names = [{each["name"] for each in item["env"]} for item in (our_container, their_container)]
    assert names[0] >= names[1] - {"FILESTREAMER_SENDER_TO"}  # which is --to here


def test_the_images_have_the_version_of_the_code() -> None:
    found = jobs_of(rendered("copy", "a/x", "b/x"))

    for role, job in found.items():
        assert container_of(job)["image"] == f"filestreamer/{role}:{VERSION}"
    done = subprocess.run(["sh", PLUGIN, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"kubectl-filestreamer {VERSION}\n"


def test_images_are_chosen() -> None:
    images = ("--sender-image", "r.example:5000/s@sha256:00", "--receiver-image=r.example/r:1")
    found = jobs_of(rendered("copy", "a/x", "b/x", *images))

    assert container_of(found["sender"])["image"] == "r.example:5000/s@sha256:00"
    assert container_of(found["receiver"])["image"] == "r.example/r:1"


def test_no_token_is_printed(home: Path) -> None:
    text = render(home, "copy", "a/x", "b/x")

    assert "kind: Secret" not in text
    assert "create secret generic filestreamer-sender-x-x-" in text


@pytest.mark.parametrize("shell", ["dash", "bash", "busybox", "mksh", "zsh"])
def test_every_shell_renders_the_same(shell: str, home: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell}")
    arguments = ["copy", "a/x", "b/y", "--owner", "--shards", "3", "--", "--exclude", "$(X) \"q\" \\ é 'p'"]
    if shell == "busybox":
        box = home / "box"
        box.mkdir()
        (box / "busybox-sh").write_text('#!/bin/sh\nexec busybox sh "$@"\n')
        (box / "busybox-sh").chmod(0o755)
        shell = str(box / "busybox-sh")
    elif shell == "zsh":
        (home / "sh").symlink_to(str(shutil.which("zsh")))  # it is a POSIX shell under that name
        shell = str(home / "sh")

    assert render(home, *arguments, shell=shell) == render(home, *arguments)


@pytest.mark.parametrize("awk", ["gawk", "mawk", "busybox", "original-awk"])
def test_every_awk_reads_what_a_cluster_says(awk: str, run: Running) -> None:
    """The original one, which macOS has, takes no comparison in the list of a printf without parentheses."""
    found = shutil.which(awk)
    if found is None:
        pytest.skip(f"there is no {awk}")
    (run.home / "awk").symlink_to(found)
    run.variables["PATH"] = f"{run.home}{os.pathsep}{KUBECTL.parent}{os.pathsep}{os.environ['PATH']}"
    waits = unschedulable("0/3 nodes are available: 3 Insufficient cpu.")
    run.cluster.plays["receiver"] = [*[waits] * 3, *[running()] * 6, ended(0, result())]
    run.cluster.plays["sender"] = [*[running()] * 9, ended(0, result())]

    code, text = _on_terminal(run, "copy", "a/data", "b/data")

    assert code == 0
    assert "the receiver does not start: Unschedulable: 0/3 nodes are available: 3 Insufficient cpu.\r\n" in text
    assert "1.0 MiB of 3.0 MiB (33 %), 1.0 MiB/s, 2 s to go" in text
    assert "a/data -> b/data: complete: 2 files, 3.0 MiB in 7 s" in text
    assert "awk" not in text


def test_an_option_of_the_sender_arrives_as_it_is() -> None:
    word = "$(HOME) $$ \"quoted\" \\ é 'single' # y"
    job = jobs_of(rendered("copy", "a/x", "b/x", "--", "--exclude", word))["sender"]

    arguments = container_of(job)["args"]
    assert arguments[-2] == "--exclude"
    assert re.sub(r"\$\$", "$", arguments[-1]) == word  # the kubelet makes one of two
    assert "$(" not in re.sub(r"\$\$", "", arguments[-1])


@pytest.mark.parametrize("claim", ["y", "no", "null", "1e3", "0x1f", "a.b-c", "x" * 253, "9" * 60, "1.5"])
def test_claims_of_any_name(claim: str) -> None:
    found = rendered("copy", f"{'n' * 63}/{claim}", f"1e3/{claim}", "--shards", "1000")

    jobs = jobs_of(found)
    for job in jobs.values():
        assert pod_of(job)["volumes"][0]["persistentVolumeClaim"]["claimName"] == claim
        assert len(job["metadata"]["name"]) <= 63 - len("-999")
    assert jobs["receiver"]["metadata"]["namespace"] == "1e3"
    assert len({item["metadata"]["labels"]["app.kubernetes.io/instance"] for item in found}) == 1


COPIES: Final = (
    ("copy", "a/x", "b/x"),
    ("verify", "a/x", "b/x"),
    ("copy", "a/x", "c/x"),
    ("copy", "b/x", "a/x"),
    ("copy", "a/x", "b/x-x"),
    ("copy", "a/x-x", "b/x"),
    ("copy", "a/x.x", "b/x"),
    ("copy", "a/" + "x" * 100, "b/x"),
    ("copy", "a/" + "x" * 101, "b/x"),
    ("copy", "a/x", "b/x", "--path", "p"),
    ("copy", "a/x", "b/x", "--to-context", "there"),
    ("copy", "a/x", "b/x", "--to-context", "there", "--context", "elsewhere"),
)


def test_two_copies_never_meet() -> None:
    rendered_copies = [rendered(*arguments) for arguments in COPIES]

    instances = {
        item["metadata"]["labels"]["app.kubernetes.io/instance"] for found in rendered_copies for item in found
    }
    assert len(instances) == len(COPIES)
    for number, found in enumerate(rendered_copies):
        for item in found:
            for selector in selectors_of(item):
                selected = [
                    other
                    for other, jobs in enumerate(rendered_copies)
                    if any(matches(selector, labels_of(job)) for job in jobs_of(jobs).values())
                ]
                assert selected == [number]


def test_the_same_command_has_the_same_names(home: Path) -> None:
    assert render(home, "copy", "a/x", "b/x") == render(home, "copy", "a/x", "b/x")


def test_a_policy_lets_in_the_pods_of_its_copy_alone() -> None:
    found = rendered("copy", "a/x", "b/x")

    policies = {
        item["metadata"]["labels"]["app.kubernetes.io/component"]: item
        for item in found
        if "podSelector" in item["spec"]
    }
    sending, receiving = jobs_of(found)["sender"], jobs_of(found)["receiver"]
    (_, peer) = peers_of(policies["receiver"])
    assert matches(peer["podSelector"], labels_of(sending))
    assert peer["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "a"}
    assert "egress" not in policies["receiver"]["spec"]
    (_, peer) = peers_of(policies["sender"])
    assert matches(peer["podSelector"], labels_of(receiving))
    assert peer["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "b"}


@pytest.mark.parametrize("options", RENDERED, ids=" ".join)
def test_pods_are_restricted_but_for_owner(options: tuple[str, ...]) -> None:
    for job in jobs_of(rendered("copy", "a/x", "b/x", *options)).values():
        user, security = pod_of(job)["securityContext"], container_of(job)["securityContext"]
        assert user["seccompProfile"] == {"type": "RuntimeDefault"}
        assert security["allowPrivilegeEscalation"] is False
        assert security["readOnlyRootFilesystem"] is True
        assert security["capabilities"]["drop"] == ["ALL"]
        assert user["runAsNonRoot"] is ("--owner" not in options)
        assert ("add" in security["capabilities"]) == ("--owner" in options)


def test_the_source_is_mounted_to_be_read() -> None:
    for command in ("copy", "verify"):
        pod = pod_of(jobs_of(rendered(command, "a/x", "b/x"))["sender"])

        assert pod["volumes"][0]["persistentVolumeClaim"]["readOnly"] is True
        assert pod["containers"][0]["volumeMounts"][0]["readOnly"] is True


def test_verify_compares_bytes_and_changes_no_group() -> None:
    jobs = jobs_of(rendered("verify", "a/x", "b/x", "--delete"))

    assert {"--dry-run", "--checksum", "--delete"} <= set(container_of(jobs["sender"])["args"])
    for job in jobs.values():
        assert "fsGroup" not in pod_of(job)["securityContext"]


def test_between_clusters_there_is_tls_and_a_way() -> None:
    found = rendered("copy", "a/x", "b/x", "--context", "here", "--to-context", "there", "--address", "lb.example:443")

    jobs = jobs_of(found)
    assert all("--tls" in container_of(job)["args"] for job in jobs.values())
    assert "--to=lb.example:443" in container_of(jobs["sender"])["args"]
    (service,) = (item for item in found if item["kind"] == "Service")
    assert service["spec"]["type"] == "LoadBalancer"
    assert service["metadata"]["labels"]["app.kubernetes.io/component"] == "receiver"
    policy = next(item for item in found if item["kind"] == "NetworkPolicy" and item["metadata"]["namespace"] == "a")
    assert {port["port"] for port in policy["spec"]["egress"][0]["ports"]} == {443, 7800}
    assert "to" not in policy["spec"]["egress"][0]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "copy, or verify?"),
        (("move", "a/x", "b/x"), "there is no command move"),
        (("copy", "a/x"), "the claim of the source and that of the destination"),
        (("copy", "x", "b/x"), "a claim is NAMESPACE/CLAIM"),
        (("copy", "a/x", "A/x"), "a claim is NAMESPACE/CLAIM"),
        (("copy", "a/x/y", "b/x"), "a claim is NAMESPACE/CLAIM"),
        (("copy", "a/x", "a/x"), "are the same claim"),
        (("copy", "a/x", "a/y", "b/x"), "several claims go to a namespace"),
        (("copy", "a/x", "b/x", "c/"), "would be the destination of two claims"),
        (("copy", "a/x", "b/x", "--nonsense"), "there is no option --nonsense"),
        (("copy", "a/x", "b/x", "--path"), "--path needs a value"),
        (("copy", "a/x", "b/x", "--path", "../y"), "leads out of the volume"),
        (("copy", "a/x", "b/x", "--path", "a\nb"), "control characters"),
        (("copy", "a/x", "b/x", "--shards", "0"), "--shards is a number"),
        (("copy", "a/x", "b/x", "--shards", "2", "--delete"), "--delete does not go with --shards"),
        (("verify", "a/x", "b/x", "--shards", "2"), "verify has no shards"),
        (("copy", "a/x", "b/x", "--listen", "source"), "are for two clusters"),
        (("copy", "a/x", "b/x", "--to-context", "t", "--listen", "both"), "--listen is source or destination"),
        (("copy", "a/x", "b/x", "--to-context", "t", "--address", "h:0"), "is no port"),
        (("copy", "a/x", "b/x", "--keep=no"), "--keep takes no value"),
        (("copy", "a/x", "b/x", "--sender-image", "a b"), "is not the name of an image"),
        (("copy", "a/x", "b/x", "--", "--to=elsewhere:1"), "is set by this command"),
    ],
)
def test_wrong_usage_is_told(arguments: tuple[str, ...], told: str, home: Path) -> None:
    done = subprocess.run(
        ["sh", PLUGIN, *arguments], env=_environment(home), capture_output=True, text=True, check=False
    )

    assert done.returncode == 2
    assert told in done.stderr
    assert done.stdout == ""


def test_shellcheck_finds_nothing() -> None:
    subprocess.run([KUBECTL.with_name("shellcheck"), PLUGIN], check=True)


# --- what it does


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> tuple[Running, Done]:
    """Copy once, from the beginning to the end; each command line of kubectl is in the file `lines`."""
    run = Running(tmp_path_factory.mktemp("copied"))
    wrapper = run.home / "wrapper"
    wrapper.write_text(f'#!/bin/sh\nprintf "%s\\n" "$*" >>{run.home}/lines\nexec {KUBECTL} "$@"\n')
    wrapper.chmod(0o755)
    shutil.copy(PLUGIN, run.home)  # as users do: kubectl finds it on $PATH
    run.command = [KUBECTL, "filestreamer"]
    run.variables |= {"KUBECTL": str(wrapper), "PATH": f"{run.home}{os.pathsep}{os.environ['PATH']}"}
    return run, run.run("copy", "a/data", "b/data", "--delete")


def test_a_copy_succeeds_and_leaves_nothing_but_what_was_there(copied: tuple[Running, Done]) -> None:
    run, done = copied

    assert done.code == 0, done.err
    (told,) = done.results
    assert (told["source"], told["destination"], told["exit_code"]) == ("a/data", "b/data", 0)
    assert told["result"]["files"] == 2
    assert run.cluster.left() == []
    assert set(run.cluster.named("persistentvolumeclaims")) == {"a/data", "b/data"}
    assert list(run.home.glob("kubectl-filestreamer.*")) == []


def test_the_token_is_long_and_shown_nowhere(copied: tuple[Running, Done]) -> None:
    run, done = copied

    first, second = (item["stringData"]["token"] for item in run.cluster.made("secrets"))
    assert first == second
    assert re.fullmatch("[0-9a-f]{64}", first)
    lines = (run.home / "lines").read_text()
    assert "create" in lines
    assert first not in done.out + done.err + lines
    for request in run.cluster.requests:
        if request.resource != "secrets":
            assert first not in request.body
    for item in run.cluster.made("secrets"):
        assert first not in json.dumps(item["metadata"])


def test_everything_belongs_to_its_job_and_jobs_wait_for_it(copied: tuple[Running, Done]) -> None:
    run, _ = copied

    assert all(job["spec"]["suspend"] is True for job in run.cluster.made("jobs"))
    for resource in ("secrets", "services", "networkpolicies"):
        for item in run.cluster.made(resource):
            (owner,) = item["metadata"]["ownerReferences"]
            assert (owner["kind"], owner["name"]) == ("Job", item["metadata"]["name"])
    verbs = [(each.verb, each.resource) for each in run.cluster.requests]
    assert verbs.index(("patch", "jobs")) > max(index for index, each in enumerate(verbs) if each[0] == "create")


def test_no_claim_is_written_or_deleted(copied: tuple[Running, Done]) -> None:
    run, _ = copied

    touched = {each.resource for each in run.cluster.requests if each.verb in ("create", "delete", "patch")}
    assert touched == {"jobs", "secrets", "services", "networkpolicies"}


@pytest.mark.parametrize(
    ("side", "code", "message"),
    [
        ("sender", 3, "the token is wrong"),
        ("sender", 4, "can't read /data/: Permission denied"),
        ("receiver", 4, "no space for 3145728 bytes"),
        ("receiver", 5, "1 entry was skipped"),
        ("sender", 2, "--chunk-size: 1"),
    ],
)
def test_it_ends_with_the_code_and_the_reason_of_what_failed(run: Running, side: str, code: int, message: str) -> None:
    run.cluster.plays[side] = [pending(), running(), ended(code, result(code, message))]
    other = "receiver" if side == "sender" else "sender"
    run.cluster.plays[other] = [pending(), running()]  # and waits
    run.variables |= NO_GRACE

    done = run.follow("copy", "a/data", "b/data")

    assert done.code == code
    assert f"failed: the {side}: {message}" in done.err
    (told,) = done.results
    assert told["exit_code"] == code
    assert told["result"]["error"]["message"] == message
    assert run.cluster.left() == []


def test_permission_denied_names_the_remedy(run: Running) -> None:
    run.cluster.plays["sender"] = [running(), ended(4, result(4, "can't read /data/x: Permission denied"))]

    run.cluster.plays["receiver"] = [running()]
    run.variables |= NO_GRACE
    assert "with --owner they are root" in run.follow("copy", "a/data", "b/data").err


def test_the_side_that_only_lost_the_other_does_not_hide_the_cause(run: Running) -> None:
    run.cluster.plays["sender"] = [running(), ended(4, result(4, "the disk has failed"))]
    run.cluster.plays["receiver"] = [running(), running(), ended(2, "not a result")]
    run.cluster.plays["receiver"][-1] = ended(1, result(1, "gave up after 1200 s"))

    done = run.follow("copy", "a/data", "b/data")

    assert done.code == 4
    assert "the disk has failed" in done.err


@pytest.mark.parametrize(("receiving", "code", "side"), [(6, 1, "sender"), (1, 1, "receiver"), (None, 6, "sender")])
def test_who_only_missed_the_other_is_believed_last(run: Running, receiving: int | None, code: int, side: str) -> None:
    lost = ended(6, result(6, "no receiver of job 'x' for 600 s"))
    run.cluster.plays["sender"] = [running(), ended(1, result(1, "crashed"))] if receiving == 6 else [running(), lost]
    run.cluster.plays["receiver"] = [running()]
    if receiving is not None:
        run.cluster.plays["receiver"].append(ended(receiving, result(receiving, "the disk is slow")))
    else:
        run.variables |= NO_GRACE

    done = run.follow("copy", "a/data", "b/data")

    assert done.code == code
    assert f"failed: the {side}: " in done.err


def test_a_sender_that_never_hears_of_the_end_is_no_failure(run: Running) -> None:
    run.variables |= NO_GRACE
    run.cluster.plays["sender"] = [running()]

    done = run.follow("copy", "a/data", "b/data")

    assert done.code == 0
    assert run.cluster.left() == []


def test_a_pod_that_breaks_is_told_in_its_own_words(run: Running) -> None:
    run.cluster.plays["receiver"] = [running(), ended(2, 'exec: "receiver": not found\nline two\n')]
    run.cluster.plays["sender"] = [running()]
    run.variables |= NO_GRACE

    done = run.follow("copy", "a/data", "b/data")

    assert done.code == 2
    assert 'exec: "receiver": not found line two' in done.err
    assert done.results[0]["result"] is None


@pytest.mark.parametrize(
    ("state", "told"),
    [
        (unschedulable("0/3 nodes are available: 3 Insufficient cpu."), "Unschedulable: 0/3 nodes are available"),
        (
            unschedulable("pod has unbound immediate PersistentVolumeClaims."),
            "look at: kubectl --namespace b get pvc data",
        ),
        (pending("ImagePullBackOff", 'Back-off pulling image "x"'), "--receiver-image"),
        (pending("CreateContainerConfigError", 'secret "x" not found'), 'secret "x" not found'),
    ],
)
def test_a_pod_that_waits_says_why_once_and_goes_on(run: Running, state: Object, told: str) -> None:
    run.cluster.plays["receiver"] = [state, state, state, running(), ended(0, result())]

    done = run.follow("copy", "a/data", "b/data")

    assert done.code == 0
    assert done.err.count(told) == 1
    assert "the receiver does not start: " in done.err


def test_a_volume_that_can_not_be_attached_is_told_by_its_event(run: Running) -> None:
    run.cluster.plays["sender"] = [*[pending()] * 6, running(), ended(0, result())]
    run.cluster.plays["receiver"] = [*[running()] * 7, ended(0, result())]
    (job,) = (
        item for item in rendered("copy", "a/data", "b/data") if item["kind"] == "Job" and role_of(item) == "sender"
    )
    pod = f"{job['metadata']['name']}-abcde"
    run.cluster.add_event("a", pod, "FailedAttachVolume", 'Multi-Attach error for volume "v"')

    done = run.follow("copy", "a/data", "b/data")

    assert 'the sender does not start: FailedAttachVolume: Multi-Attach error for volume "v"' in done.err
    assert "end the pod that uses it" in done.err


def test_a_namespace_that_lets_in_no_root_is_told(run: Running) -> None:
    run.cluster.standards["a"] = "baseline"

    done = run.follow("copy", "a/data", "b/data", "--owner", "--give-up-after", "6")

    assert done.code == 1
    assert 'violates PodSecurity "restricted:latest"' in done.err
    assert "; --owner takes the Pod Security Standard baseline there" in done.err
    assert "gave up after 6 s: the receiver does not start" in done.err
    assert run.cluster.left() == []


def test_namespaces_that_let_in_root(run: Running) -> None:
    run.cluster.standards |= {"a": "baseline", "b": "baseline"}

    assert run.follow("copy", "a/data", "b/data", "--owner").code == 0


def test_a_pod_that_is_replaced_is_told(run: Running) -> None:
    lost = ended(1, result(1, "the connection was lost"))
    run.cluster.plays["sender"] = [*[running()] * 2, *[lost] * 4, running(), ended(0, result())]
    run.cluster.plays["receiver"] = [*[running()] * 7, ended(0, result())]
    done = run.follow("copy", "a/data", "b/data")

    assert done.code == 0
    assert "exit code 1: the connection was lost" in done.err


@pytest.mark.parametrize(
    ("prepare", "code", "told"),
    [
        (lambda c: c.objects.pop(("persistentvolumeclaims", "b", "data")), 4, "there is no claim b/data"),
        (lambda c: c.objects.pop(("persistentvolumeclaims", "a", "data")), 4, "there is no claim a/data"),
        (lambda c: c.add_claim("b/data", phase="Lost"), 4, "has lost its volume"),
        (lambda c: c.add_claim("a/data", volume_mode="Block"), 4, "is a block device"),
        (lambda c: c.forbidden.add(("get", "persistentvolumeclaims")), 3, 'User "jane" cannot get'),
        (lambda c: c.forbidden.add(("list", "jobs")), 3, 'User "jane" cannot list'),
        (lambda c: c.forbidden.add(("create", "jobs")), 3, "can't create the Job in the namespace b"),
        (
            lambda c: c.forbidden.add(("create", "secrets")),
            3,
            'can\'t create the Secret, NetworkPolicy and Service in the namespace b: secrets is forbidden: User "jane"'
            ' cannot create resource "secrets" in API group "" in the namespace "b"; it takes create, get, list,',
        ),
        (lambda c: c.forbidden.add(("patch", "jobs")), 3, "can't start the Job"),
        (lambda c: setattr(c, "is_down", True), 1, "can't look at the Jobs"),
    ],
)
def test_what_can_not_begin_is_told_and_leaves_nothing(
    run: Running, prepare: Callable[[Cluster], object], code: int, told: str
) -> None:
    prepare(run.cluster)

    done = run.run("copy", "a/data", "b/data")

    assert (done.code, told in done.err) == (code, True), done.err
    assert run.cluster.left() == []
    assert done.out == ""


@pytest.mark.parametrize("option", ["--context", "--to-context"])
def test_a_context_that_is_not_there_is_wrong_usage(run: Running, option: str) -> None:
    done = run.run("copy", "a/data", "b/data", option, "no such")

    assert done.code == 2
    assert 'can\'t look at the Jobs in the namespace b: context "no such" does not exist' in done.err.splitlines()


def test_what_is_only_good_to_know_may_be_forbidden(run: Running) -> None:
    """Events, logs, and all pods of the namespaces: those of the copy are needed."""
    run.cluster.forbidden |= {("list", "events"), ("get", "pods/log")}
    all_pods = ("list", "pods")

    def forbid(request: Request) -> None:
        run.cluster.forbidden.discard(all_pods)
        if len(run.cluster.requests) > 1 and run.cluster.requests[-2].resource == "persistentvolumeclaims":
            run.cluster.forbidden.add((request.verb, request.resource))

    run.cluster.on_request = forbid
    done = run.run("copy", "a/data", "b/data")

    assert done.code == 0, done.err
    assert "can't see which pods use a/data: " in done.err
    assert "can't show progress: " in done.err


def test_an_api_server_that_is_away_for_a_while_ends_nothing(run: Running) -> None:
    looks = iter(range(100))

    def fail(request: Request) -> None:
        if request.verb == "list" and request.resource == "jobs":
            run.cluster.is_down = 4 <= next(looks) < 8

    run.cluster.on_request = fail
    done = run.follow("copy", "a/data", "b/data")

    assert done.code == 0
    assert done.err.count("the cluster does not answer") == 1


def test_jobs_that_somebody_deletes_are_missed(run: Running) -> None:
    run.cluster.plays = {"receiver": [running()], "sender": [running()]}
    looks = iter(range(100))

    def delete(request: Request) -> None:
        if request.resource == "pods/log" and next(looks) == 1:
            for key in [key for key in run.cluster.objects if key[0] in ("jobs", "pods")]:
                del run.cluster.objects[key]

    run.cluster.on_request = delete
    done = run.follow("copy", "a/data", "b/data")

    assert done.code == 1
    assert "somebody has deleted them" in done.err
    assert run.cluster.left() == []


def _on_terminal(run: Running, *arguments: str) -> tuple[int, str]:
    """Run the plugin on a terminal, where the copy is under way; return its exit code, and what is shown."""
    run.cluster.adopt(rendered(*arguments))
    with ExitStack() as stack:
        run.serve(stack)
        terminal, its = os.openpty()
        stack.callback(os.close, terminal)
        process = subprocess.Popen(
            ["sh", PLUGIN, *arguments],
            env=_environment(run.home, **{"TERM": "xterm", **run.variables}),
            stdin=subprocess.DEVNULL,
            stdout=its,
            stderr=its,
            start_new_session=True,
        )
        stack.callback(os.close, its)  # not before all was read: the last lines may be lost with the other end

        def end() -> None:
            process.wait(HANG)
            os.write(its, b"\0")

        waiting = threading.Thread(target=end)
        waiting.start()
        stack.callback(waiting.join)
        shown = b""
        while not shown.endswith(b"\0"):
            shown += os.read(terminal, 65536)
        return process.wait(), shown[:-1].decode()


def test_a_terminal_shows_progress_and_a_summary(run: Running) -> None:
    run.cluster.logs["sender"] = progress(1048576, 3145728, 1048576)
    run.cluster.plays["receiver"] = [running()] * 6 + [ended(0, result())]
    run.cluster.plays["sender"] = [running()] * 6 + [ended(0, result())]

    code, text = _on_terminal(run, "copy", "a/data", "b/data")

    assert code == 0
    assert "1.0 MiB of 3.0 MiB (33 %), 1.0 MiB/s, 2 s to go" in text
    assert "\r\x1b[Ka/data -> b/data: complete: 2 files, 3.0 MiB in 7 s" in text


def test_the_summary_of_shards_is_of_the_whole(run: Running) -> None:
    whole = {"name": "x", "shard": "2/3", "shards_finished": 3, "files": 77, "bytes": 5242880}
    told = ['/data is "empty": is what should be in it mounted?', "another"]
    run.cluster.plays["receiver"][-1] = ended(0, result(job=whole, warnings=told))

    code, text = _on_terminal(run, "copy", "a/data", "b/data", "--shards", "3")

    assert code == 0
    assert "a/data -> b/data: complete: 77 files, 5.0 MiB\r\n" in text
    assert f"a/data -> b/data: warning: {told[0]}\r\n" in text


def test_each_line_on_a_terminal_takes_the_place_of_the_progress(run: Running) -> None:
    """The copies and their progress have one terminal: progress may be shown between any two lines of a copy."""
    end = ended(5, result(5, "the two sides differ: 2 differ", "different"))
    run.cluster.plays = {"receiver": [running(), end], "sender": [running(), end]}
    run.cluster.logs["sender"] = "".join(f"differs   file                    5 sub/{name}\n" for name in "ab")

    code, text = _on_terminal(run, "verify", "a/data", "b/data")

    assert code == 5
    lines = text.split("\r\n")
    assert "\r\x1b[Kdiffers   file                    5 sub/b" in lines
    assert [line for line in lines if not line.startswith("\r\x1b[K")] == []


def test_a_terminal_that_takes_no_control_characters_is_sent_none(run: Running) -> None:
    run.variables["TERM"] = "dumb"

    code, text = _on_terminal(run, "copy", "a/data", "b/data")

    assert code == 0
    assert "\x1b" not in text
    assert "\na/data -> b/data: complete: 2 files" in text


def test_progress_in_a_narrow_terminal_leaves_nothing_behind(run: Running) -> None:
    """What is wider than the terminal would go on in a second line, of which only the end can be taken back."""
    run.cluster.logs["sender"] = progress(1048576, 3145728, 1048576)
    run.cluster.plays = {side: [*[running()] * 6, ended(0, result())] for side in ("receiver", "sender")}
    run.cluster.adopt(rendered("copy", "a/data", "b/data"))
    environment = _environment(run.home, **run.variables)
    command = ["env", *(f"{name}={value}" for name, value in environment.items()), "sh", str(PLUGIN)]
    (run.home / "script").write_text(shlex.join([*command, "copy", "a/data", "b/data"]))

    with ExitStack() as stack:
        run.serve(stack)
        terminal = stack.enter_context(terminals())
        terminal.open("pane", columns=30, lines=50)
        terminal.type("pane", "sh", run.home / "script")
        wait_for(lambda: any(map(ENDED.match, terminal.shows("pane"))), "the end")
        text = "\n".join(terminal.shows("pane"))

    assert "a/data -> b/data: complete: 2" in text
    assert "1.0 MiB of 3.0 MiB" not in text


# --- it is interrupted, and goes on


@pytest.fixture
def endless(run: Running) -> Running:
    """Make a copy whose pods run until they are ended."""
    run.cluster.plays = {"receiver": [running()], "sender": [running()]}
    return run


def _begin_to_move(run: Running, *arguments: str) -> subprocess.Popen[str]:
    """Start the plugin where a copy is under way; return when it asks how much has moved."""
    run.cluster.adopt(rendered("copy", "a/data", "b/data", *arguments))
    moves = threading.Event()
    run.cluster.on_request = lambda request: moves.set() if request.resource == "pods/log" else None
    process = run.start("copy", "a/data", "b/data", *arguments)
    assert moves.wait(HANG)
    return process


def _interrupt(run: Running, number: int, *arguments: str) -> Done:
    """Send a signal to the plugin, and what it started, while a copy is under way."""
    process = _begin_to_move(run, *arguments)
    os.killpg(process.pid, number)
    out, err = process.communicate(timeout=HANG)
    return Done(process.returncode, out, err)


@pytest.mark.parametrize("shell", ["sh", "bash"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_copy_and_says_how_it_goes_on(endless: Running, number: int, shell: str) -> None:
    """Bash 5.2 loses a signal that comes while it waits for $(...)."""
    endless.command[0] = shell
    with ExitStack() as stack:
        endless.serve(stack)
        done = _interrupt(endless, number, "--path", "my photos")

        assert done.code == 128 + number
        assert "kubectl filestreamer copy a/data b/data --path 'my photos'" in done.err
        assert "what has arrived stays in b/data" in done.err
        assert endless.cluster.left() == []


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGKILL])
def test_a_plugin_that_is_gone_leaves_the_copy_to_the_cluster(endless: Running, number: int) -> None:
    with ExitStack() as stack:
        endless.serve(stack)
        _interrupt(endless, number)
        assert len(endless.cluster.named("jobs")) == 2

        now_done = {"receiver": [ended(0, result())], "sender": [ended(0, result())]}
        endless.cluster.on_request = lambda request: (
            endless.cluster.plays.update(now_done) if request.resource == "pods/log" else None
        )
        process = endless.start("copy", "a/data", "b/data")
        _, err = process.communicate(timeout=HANG)

        assert process.returncode == 0
        assert "is under way already: following it" in err
        assert endless.cluster.made("jobs") == []  # none was made anew
        assert endless.cluster.left() == []


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGQUIT, signal.SIGKILL])
def test_nothing_of_a_plugin_that_is_gone_goes_on(endless: Running, number: int) -> None:
    """Only its first process is ended; the others have its standard error until they end, too."""
    with ExitStack() as stack:
        endless.serve(stack)
        process = _begin_to_move(endless)
        os.kill(process.pid, number)
        process.wait(HANG)

        _, err = process.communicate(timeout=HANG)

        assert process.returncode == (-number if number == signal.SIGKILL else 128 + number)
        assert ("the Jobs go on in the cluster" in err) == (number != signal.SIGKILL)
        assert len(endless.cluster.named("jobs")) == 2


@pytest.mark.parametrize("resource", ["persistentvolumeclaims", "jobs", "secrets"])
def test_a_signal_that_ends_kubectl_too_is_no_error_of_the_cluster(endless: Running, resource: str) -> None:
    """SIGTERM of timeout and of systemd is sent to all processes."""
    with ExitStack() as stack:
        endless.serve(stack)
        has_started = threading.Event()

        def end(request: Request) -> None:
            if (request.verb, request.resource) == ("get" if resource.endswith("claims") else "create", resource):
                endless.cluster.on_request = lambda _: None
                assert has_started.wait(HANG)
                os.killpg(process.pid, signal.SIGTERM)

        endless.cluster.on_request = end
        process = endless.start("copy", "a/data", "b/data")
        has_started.set()
        _, err = process.communicate(timeout=HANG)

        assert process.returncode == 143
        assert "kubectl filestreamer copy a/data b/data" in err
        assert "can't" not in err
        assert endless.cluster.left() == []


@pytest.mark.parametrize("shell", ["sh", "bash", "mksh"])
def test_ctrl_c_once_more_ends_at_once(endless: Running, shell: str) -> None:
    """Whatever the cluster is asked meanwhile, and does not answer."""
    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell}")
    endless.command[0] = shell
    with ExitStack() as stack:
        endless.serve(stack)
        is_over = threading.Event()
        stack.callback(is_over.set)

        def hold(request: Request) -> None:
            if request.verb == "delete":
                is_over.wait(HANG)

        process = _begin_to_move(endless)
        endless.cluster.on_request = hold
        while process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.2)
        is_over.set()
        _, err = process.communicate(timeout=HANG)

        assert process.returncode == 130
        assert "ended at once: the Jobs may go on in the cluster" in err
        assert list(endless.home.glob("kubectl-filestreamer.*")) == []


def test_other_settings_replace_what_is_under_way(endless: Running) -> None:
    with ExitStack() as stack:
        endless.serve(stack)
        _interrupt(endless, signal.SIGKILL)
        goes_on = {"receiver": [running(), ended(0, result())], "sender": [running(), ended(0, result())]}
        endless.cluster.on_request = lambda request: (
            endless.cluster.plays.update(goes_on) if request.verb == "delete" else None
        )

        process = endless.start("copy", "a/data", "b/data", "--delete")
        _, err = process.communicate(timeout=HANG)

        assert process.returncode == 0
        assert "is under way with other settings" in err
        assert len(endless.cluster.made("jobs")) == 2


def test_keep_leaves_jobs_that_go_on(endless: Running) -> None:
    with ExitStack() as stack:
        endless.serve(stack)
        done = _interrupt(endless, signal.SIGINT, "--keep")

        assert done.code == 130
        assert len(endless.cluster.named("jobs")) == 2
        assert "the Jobs go on in the cluster" in done.err
        assert "kubectl --namespace=b delete job,service,networkpolicy,secret --selector=" in done.err


def test_keep_leaves_what_has_ended_and_the_same_command_copies_again(run: Running) -> None:
    assert run.follow("copy", "a/data", "b/data", "--keep").code == 0
    assert len(run.cluster.named("jobs")) == 2
    assert run.cluster.made("jobs") == []

    assert run.run("copy", "a/data", "b/data", "--keep").code == 0
    assert len(run.cluster.named("jobs")) == len(run.cluster.made("jobs")) == 2


def test_who_begins_the_same_copy_at_the_same_moment_leaves_it_alone(run: Running) -> None:
    def begin(request: Request) -> None:
        """Have another one make its Jobs just before."""
        if (request.verb, request.resource) == ("create", "jobs"):
            run.cluster.adopt(rendered("copy", "a/data", "b/data"))

    run.cluster.on_request = begin
    done = run.run("copy", "a/data", "b/data")

    assert done.code == 1
    assert "another one has begun this copy: the same command follows it" in done.err
    assert len(run.cluster.named("jobs")) == 2
    assert run.cluster.deleted() == set()


def test_a_part_of_the_plugin_that_is_killed_does_not_hang_the_rest(endless: Running) -> None:
    with ExitStack() as stack:
        endless.serve(stack)
        process = _begin_to_move(endless)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        for child in children:
            with suppress(FileNotFoundError, ProcessLookupError):  # one that has ended meanwhile
                if b"filestreamer" in Path(f"/proc/{child}/cmdline").read_bytes():
                    os.kill(int(child), signal.SIGKILL)
        _, err = process.communicate(timeout=HANG)

        assert process.returncode == 1
        assert "a process of this command has ended too early" in err


# --- verify


def test_sides_that_are_equal(run: Running) -> None:
    run.cluster.plays["receiver"] = [running()]  # waits for more
    run.cluster.logs["sender"] = "same      file              3000000 a\n"

    done = run.follow("verify", "a/data", "b/data")

    assert done.code == 0
    assert [json.loads(line)["exit_code"] for line in done.out.splitlines()] == [0]
    assert run.cluster.left() == []


def test_sides_that_differ_are_told_entry_by_entry(run: Running) -> None:
    run.cluster.plays["receiver"] = [running()]
    differs = result(5, "the two sides differ: 1 differs", "different")
    run.cluster.plays["sender"] = [running(), ended(5, differs)]
    lines = "same      file              3000000 a\ndiffers   file                    5 sub/b\n"
    run.cluster.logs["sender"] = progress(1, 2, 3) + lines + differs

    done = run.follow("verify", "a/data", "b/data")

    assert done.code == 5
    assert done.out.splitlines()[0] == "differs   file                    5 sub/b"
    assert done.results[0]["result"]["error"]["code"] == "different"


@pytest.fixture
def differing(run: Running) -> Running:
    """Make a comparison that finds four entries to differ."""
    differs = result(
        5, "the two sides differ: 3 differs, 1 extra", "different", verdicts={"differs": 3, "extra": 1, "same": 9}
    )
    run.cluster.plays = {"receiver": [running()], "sender": [running(), ended(5, differs)]}
    names = [
        f"{kind:9} file                    5 {kind}" for kind in ("differs", "differs", "same", "differs", "extra")
    ]
    run.cluster.logs["sender"] = "".join(f"{line}-{number}\n" for number, line in enumerate(names))
    return run


def test_what_the_log_does_not_hold_any_more_is_missed(differing: Running) -> None:
    """A kubelet keeps the last part of a log that grows: 10 MiB of it, where nothing else is set."""
    kept = differing.cluster.logs["sender"].partition("differs-1\n")[2]
    assert "can't be listed" not in differing.follow("verify", "a/data", "b/data").err

    differing.cluster.logs["sender"] = kept
    done = differing.follow("verify", "a/data", "b/data")

    assert done.code == 5
    assert [line.split()[-1] for line in done.out.splitlines()[:-1]] == ["differs-3", "extra-4"]
    assert "2 of 4 that differ can't be listed: the cluster keeps the last part of a long log" in done.err


def test_what_differs_is_told_by_the_pod_that_has_compared_all(differing: Running) -> None:
    """And not by one that was ended early, and replaced, although it is the last one by its name."""
    (job,) = (
        item for item in rendered("verify", "a/data", "b/data") if item["kind"] == "Job" and role_of(item) == "sender"
    )
    name = f"{job['metadata']['name']}-zzzzz"
    early = ended(1, result(1, "ended by SIGTERM"))
    early["containerStatuses"][0]["state"]["terminated"]["finishedAt"] = "2025-12-31T00:00:00Z"
    differing.cluster.add_earlier_pod(job, name, early)
    differing.cluster.logs[name] = "differs   file                    5 early\n"

    done = differing.follow("verify", "a/data", "b/data")

    assert [line.split()[-1] for line in done.out.splitlines()[:-1]] == [
        "differs-0",
        "differs-1",
        "differs-3",
        "extra-4",
    ]


def test_a_long_list_may_take_longer_than_an_answer(differing: Running) -> None:
    wrapper = differing.home / "impatient"
    wrapper.write_text(f"""#!/bin/sh
for word; do
    shift
    [ "$word" != --request-timeout=30s ] || case $* in *--tail*) ;; *logs*) word=--request-timeout=1ns ;; esac
    set -- "$@" "$word"
done
exec {KUBECTL} "$@"
""")
    wrapper.chmod(0o755)
    differing.variables["KUBECTL"] = str(wrapper)

    done = differing.follow("verify", "a/data", "b/data")

    assert len(done.out.splitlines()) == 5, done.err


@pytest.mark.parametrize("shell", ["sh", "bash"])
@pytest.mark.parametrize("to", [None, "/dev/full"])
def test_a_result_that_can_not_be_written_leaves_no_jobs(run: Running, to: str | None, shell: str) -> None:
    """To a reader that is gone, as `head` is when it has seen enough, or to a full disk."""
    run.cluster.plays["sender"] = [running(), ended(5, result(5, "the two sides differ: 1 differs", "different"))]
    run.cluster.plays["receiver"] = [running()]
    run.cluster.logs["sender"] = "differs   file                    5 sub/b\n"
    run.cluster.adopt(rendered("verify", "a/data", "b/data"))
    run.command = [shell, "-c", f'exec {shell} "$0" "$@"{f" >{to}" if to is not None else ""}', PLUGIN]
    with ExitStack() as stack:
        run.serve(stack)
        process = run.start("verify", "a/data", "b/data")
        assert process.stdout is not None
        process.stdout.close()
        process.stdout = None
        _, err = process.communicate(timeout=HANG)

    assert process.returncode == 5
    assert "can't write the result to standard output" in err
    assert "failed: the sender: the two sides differ" in err
    assert run.cluster.left() == []


# --- claims that are in use


@pytest.mark.parametrize(
    ("source", "destination", "pinned"),
    [
        (("ReadWriteOnce",), ("ReadWriteMany", "ReadWriteOnce"), {"sender": "a/data"}),
        (("ReadWriteOnce", "ReadOnlyMany"), ("ReadWriteOnce",), {"receiver": "b/data"}),
    ],
)
def test_a_claim_that_is_mounted_elsewhere_puts_the_pod_there(
    run: Running, source: tuple[str, ...], destination: tuple[str, ...], pinned: dict[str, str]
) -> None:
    for claim, modes in (("a/data", source), ("b/data", destination)):
        run.cluster.add_claim(claim, *modes)
        run.cluster.add_user(claim, "database-0", "node-7")

    done = run.run("copy", "a/data", "b/data")

    assert done.code == 0
    found = jobs_of(run.cluster.made("jobs"))
    assert {role for role, job in found.items() if "affinity" in pod_of(job)} == pinned.keys()
    for role, claim in pinned.items():
        terms = pod_of(found[role])["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        (field,) = terms["nodeSelectorTerms"][0]["matchFields"]
        assert (field["key"], field["values"]) == ("metadata.name", ["node-7"])
        assert f"{claim} is in use by the pod database-0 on node-7: the {role} goes there" in done.err


def test_a_claim_for_one_pod_alone_is_not_waited_for(run: Running) -> None:
    run.cluster.add_claim("a/data", "ReadWriteOncePod")
    run.cluster.add_user("a/data", "database-0", "node-7")

    done = run.run("copy", "a/data", "b/data")

    assert done.code == 1
    assert "is ReadWriteOncePod, and the pod database-0 has it" in done.err
    assert run.cluster.left() == []


# --- several pods, claims, clusters


@pytest.mark.parametrize("mode", ["ReadWriteOnce", "ReadOnlyMany"])
def test_shards_are_an_indexed_job(run: Running, mode: str) -> None:
    run.cluster.add_claim("a/data", mode)
    whole = {"name": "x", "shard": "2/3", "shards_finished": 3, "files": 77, "bytes": 1}
    run.cluster.plays["receiver"][-1] = ended(0, result(job=whole))
    run.cluster.logs["sender"] = progress(100, 1000, 10)

    done = run.run("copy", "a/data", "b/data", "--shards", "3")

    assert done.code == 0
    job = jobs_of(run.cluster.made("jobs"))["sender"]
    assert (job["spec"]["completionMode"], job["spec"]["completions"], job["spec"]["parallelism"]) == ("Indexed", 3, 3)
    (theirs,) = (item for item in objects("overlays/shards", "Job") if role_of(item) == "sender")
    assert job["spec"]["podFailurePolicy"] == theirs["spec"]["podFailurePolicy"]
    assert "--shard=$(JOB_COMPLETION_INDEX)/3" in container_of(job)["args"]
    assert "FILESTREAMER_JOB" in {each["name"] for each in container_of(job)["env"]}
    assert ("affinity" in pod_of(job)) == (mode == "ReadWriteOnce")
    assert ("topologySpreadConstraints" in pod_of(job)) == (mode == "ReadOnlyMany")
    assert done.results[0]["result"]["job"]["files"] == 77


def test_several_claims_at_once(run: Running) -> None:
    run.cluster.add_claim("a/more")
    run.cluster.add_claim("b/more")

    done = run.run("copy", "a/data", "a/more", "b/")

    assert done.code == 0
    assert sorted((each["source"], each["destination"]) for each in done.results) == [
        ("a/data", "b/data"),
        ("a/more", "b/more"),
    ]
    assert len({item["stringData"]["token"] for item in run.cluster.made("secrets")}) == 2
    assert run.cluster.left() == []


def test_a_copy_that_has_ended_adds_nothing_to_the_speed_of_the_others(run: Running) -> None:
    """Both are measured, then the Jobs of one are deleted, and later the other one ends."""
    run.cluster.add_claim("a/more")
    run.cluster.add_claim("b/more")
    run.cluster.plays = {"receiver": [running()], "sender": [running()]}
    measured = {"data": 0, "more": 0}

    def end(request: Request) -> None:
        if request.resource != "pods/log":
            return
        claim = "more" if "-more-" in request.name else "data"
        measured[claim] += 1
        if claim == "more" and min(measured.values()) >= 8:
            for key in [key for key in run.cluster.objects if "-more-" in key[2]]:
                del run.cluster.objects[key]
            measured["data"] = -30
        if measured["data"] == -1:
            run.cluster.plays = {"receiver": [ended(0, result())], "sender": [ended(0, result())]}

    run.cluster.on_request = end
    code, text = _on_terminal(run, "copy", "a/data", "a/more", "b/")

    assert code == 1
    assert "0 of 2 done; 2.0 MiB of 6.0 MiB (33 %), 2.0 MiB/s, 2 s to go" in text
    assert "1 of 2 done; 2.0 MiB of 6.0 MiB (33 %), 1.0 MiB/s, 4 s to go" in text
    assert "1 of 2 done; 2.0 MiB of 6.0 MiB (33 %), 2.0 MiB/s" not in text


def test_one_of_several_that_fails_decides(run: Running) -> None:
    run.cluster.add_claim("a/more")
    run.cluster.adopt(rendered("copy", "a/data", "b/data"))

    done = run.run("copy", "a/more", "a/data", "b/")

    assert done.code == 4
    assert "a/more -> b/more: there is no claim b/more" in done.err
    assert [each["exit_code"] for each in done.results] == [0]
    assert run.cluster.left() == []


@pytest.fixture
def two(run: Running) -> Running:
    there = run.add_cluster()
    there.add_claim("b/data")
    del run.cluster.objects["persistentvolumeclaims", "b", "data"]
    return run


def test_between_two_clusters_the_receiver_is_reached_by_its_load_balancer(two: Running) -> None:
    there = two.clusters["there"]
    there.address = {"hostname": "lb.example"}

    done = two.run("copy", "a/data", "b/data", "--to-context", "there")

    assert done.code == 0, done.err
    (sending,), (receiving,) = two.cluster.made("jobs"), there.made("jobs")
    assert (role_of(sending), role_of(receiving)) == ("sender", "receiver")
    assert "--to=lb.example:7800" in container_of(sending)["args"]
    assert "--tls" in container_of(sending)["args"]
    assert "--tls" in container_of(receiving)["args"]
    assert two.cluster.token() == there.token()
    assert len(two.cluster.token()) >= 32
    assert (two.cluster.left(), there.left()) == ([], [])


def test_by_a_node_port_to_the_claim_of_the_same_name(two: Running) -> None:
    two.clusters["there"].add_claim("a/data")

    done = two.run("copy", "--context=here", "--to-context=there", "a/data", "a/data", "--service", "NodePort")

    assert done.code == 0, done.err
    (sending,) = two.cluster.made("jobs")
    assert "--to=192.0.2.7:31234" in container_of(sending)["args"]
    (policy,) = two.cluster.made("networkpolicies")
    assert {port["port"] for port in policy["spec"]["egress"][0]["ports"]} == {7800, 31234}


def test_where_only_the_source_can_be_reached_the_receiver_dials(two: Running) -> None:
    there = two.clusters["there"]
    two.cluster.address = {"ip": "2001:db8::7"}

    done = two.run("copy", "a/data", "b/data", "--to-context", "there", "--listen", "source")

    assert done.code == 0, done.err
    (sending,), (receiving,) = two.cluster.made("jobs"), there.made("jobs")
    assert {"--listen=[::]:7800", "--once", "--tls"} <= set(container_of(sending)["args"])
    assert {"--connect=[2001:db8::7]:7800", "--tls"} <= set(container_of(receiving)["args"])
    assert len(two.cluster.made("services")) == 1
    assert there.made("services") == []
    assert (two.cluster.left(), there.left()) == ([], [])


@pytest.mark.parametrize("receiving", [None, 1, 6])
def test_a_dialling_receiver_that_is_replaced_at_the_end_is_no_failure(two: Running, receiving: int | None) -> None:
    """Everything is in place, as its sender says; the next pod of the receiver finds nobody, and looks for long."""
    two.cluster.address = {"ip": "192.0.2.8"}
    two.cluster.plays["sender"] = [*[running()] * 6, ended(0, result())]
    lost = [] if receiving is None else [ended(receiving, result(receiving, "no sender of job 'x' for 1200 s"))]
    two.clusters["there"].plays["receiver"] = [*[running()] * 9, *lost]
    two.variables |= {"FILESTREAMER_GRACE": "0" if receiving is None else "30"}

    done = two.run("copy", "a/data", "b/data", "--to-context", "there", "--listen", "source")

    assert done.code == 0, done.err
    (told,) = done.results
    assert (told["exit_code"], told["side"], told["result"]["committed"]) == (0, "sender", True)
    assert (two.cluster.left(), two.clusters["there"].left()) == ([], [])


@pytest.mark.parametrize(
    ("receiving", "committed", "code"),
    [(ended(4, result(4, "the disk has failed")), True, 4), (running(), False, 1)],
)
def test_what_a_dialling_receiver_has_not_put_in_place_is_a_failure(
    two: Running, receiving: Object, committed: bool, code: int
) -> None:
    two.cluster.address = {"ip": "192.0.2.8"}
    two.cluster.plays["sender"] = [*[running()] * 6, ended(0, result(committed=committed))]
    two.clusters["there"].plays["receiver"] = [*[running()] * 9, receiving]
    two.variables |= {"FILESTREAMER_GRACE": "0" if receiving == running() else str(HANG)}

    done = two.run("copy", "a/data", "b/data", "--to-context", "there", "--listen", "source")

    assert done.code == code, done.err


def test_a_receiver_that_listens_is_waited_for_after_its_sender(run: Running) -> None:
    """It decides: a sender that is complete ends no wait for it."""
    run.cluster.plays["sender"] = [running(), ended(0, result())]
    run.cluster.plays["receiver"] = [*[running()] * 9, ended(5, result(5, "1 entry was skipped"))]
    run.variables |= NO_GRACE

    assert run.follow("copy", "a/data", "b/data").code == 5


def test_a_load_balancer_that_never_comes_is_given_up(two: Running) -> None:
    two.clusters["there"].plays["receiver"] = [running()]

    done = two.run("copy", "a/data", "b/data", "--to-context", "there", "--give-up-after", "6")

    assert done.code == 1
    assert "has no address; without a load balancer: --service NodePort, or --address" in done.err
    assert (two.cluster.left(), two.clusters["there"].left()) == ([], [])


def test_a_context_may_be_named_although_it_is_the_current_one(home: Path) -> None:
    """It is the same copy, and there is one of it at a time."""
    (home / "kubeconfig").write_text('{"current-context": "here"}')
    between = ("copy", "a/data", "b/data", "--to-context", "there")

    found = [
        {item["metadata"]["name"] for item in parsed(render(home, *between, *more))}
        for more in ((), ("--context", "here"))
    ]

    assert found[0] == found[1]


def test_the_context_of_the_source_as_target_is_one_cluster(home: Path) -> None:
    (home / "kubeconfig").write_text('{"current-context": "here"}')

    found = parsed(render(home, "copy", "a/data", "b/data", "--to-context", "here"))

    assert found == rendered("copy", "a/data", "b/data")


# --- its pods, as processes of this machine


def _start(job: Object, folder: Path, volume: Path, port: int, index: int) -> subprocess.Popen[str]:
    """Start the service of a pod on loopback, with its volume in a directory."""
    changes = {
        r"^((?:--directory=)?)/data": rf"\1{volume}",
        r"^--listen=.*": f"--listen=127.0.0.1:{port}",
        r"^(--to|--connect)=.*": rf"\1=127.0.0.1:{port}",
        r"^--metrics=.*": "--metrics=off",
        r"/dev/termination-log": str(folder / f"{role_of(job)}-{index}.json"),
        r"\$\(JOB_COMPLETION_INDEX\)": str(index),
    }
    arguments = container_of(job)["args"]
    for pattern, text in changes.items():
        arguments = [re.sub(pattern, text, each) for each in arguments]
    named = {each["name"]: "filestreamer-1" for each in container_of(job)["env"]}
    return subprocess.Popen(
        [KUBECTL.with_name(role_of(job)), *arguments],
        env=_environment(folder, **{**named, "FILESTREAMER_TOKEN": TOKEN}),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def _move(home: Path, command: str, *options: str) -> tuple[set[int], str]:
    """Run the pods of a command; return the exit codes of both sides, and what the senders print."""
    jobs = jobs_of(rendered(command, "a/x", "b/x", *options))
    for name in ("source", "destination"):
        (home / name).mkdir(exist_ok=True)
    count = jobs["sender"]["spec"].get("completions", 1)
    with held_port() as port:
        pods = [_start(jobs["sender"], home, home / "source", port, index) for index in range(count)]
        receiving = _start(jobs["receiver"], home, home / "destination", port, 0)
        printed = "".join(pod.communicate(timeout=HANG)[0] for pod in pods)
        if command == "verify":
            receiving.terminate()  # as the plugin does
        receiving.communicate(timeout=HANG)
    return {pod.returncode for pod in (*pods, *([receiving] if command == "copy" else []))}, printed


def _fill(folder: Path) -> None:
    (folder / "some" / "where").mkdir(parents=True)
    for number in range(20):
        (folder / "some" / f"{number}").write_bytes(bytes([number]) * 1000 * number)
    (folder / "some" / "where" / "large").write_bytes(random.Random(7).randbytes(9_000_000))


def _content(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and ".filestreamer" not in path.parts
    }


TWO_CLUSTERS: Final = ("--context", "here", "--to-context", "there")


@pytest.mark.parametrize(
    "options",
    [("--shards", "3"), ("--path", "some/", "--delete"), TWO_CLUSTERS, (*TWO_CLUSTERS, "--listen", "source")],
    ids=" ".join,
)
def test_its_pods_move_a_volume_and_find_both_sides_equal(options: tuple[str, ...], home: Path) -> None:
    _fill(home / "source")

    assert _move(home, "copy", *options)[0] == {0}

    top = home / "source" / "some" if "--path" in options else home / "source"
    assert _content(home / "destination") == _content(top)
    if not {"--shards", "--listen"} & set(options):
        assert _move(home, "verify", *options)[0] == {0}


def test_its_pods_find_what_differs_and_change_nothing(home: Path) -> None:
    _fill(home / "source")
    assert _move(home, "copy")[0] == {0}
    assert _content(home / "destination") == _content(home / "source")
    (home / "destination" / "some" / "7").write_bytes(b"x" * 7000)
    (home / "destination" / "more").write_bytes(b"x")
    before = _content(home / "destination")

    codes, printed = _move(home, "verify", "--delete")

    assert codes == {5}
    told = {(line.split()[0], line.split()[-1]) for line in printed.splitlines() if not line.startswith(("same", "{"))}
    assert told == {("differs", "some/7"), ("extra", "more")}
    assert _content(home / "destination") == before
