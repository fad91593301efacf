"""A cluster that is only recorded: an API server's answers, for the real kubectl, and pods that play what a test wants.

It keeps the objects that are made, validates them as 1.34 does, and stands in for the controllers: a Job that is not
suspended gets its pods, as far as the Pod Security Standard of its namespace lets them in, and each look at pods takes
every pod one step on in its play. Nothing runs in a pod.
"""

import copy
import dataclasses
import itertools
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

import kubernetes_validate
import yaml

from tests.support.kubernetes import Object, container_of, is_baseline, is_restricted, labels_of, pod_of

VERSION_OF_SCHEMAS: Final = "1.34"

KINDS: Final = {
    "persistentvolumeclaims": ("v1", "PersistentVolumeClaim", "pvc"),
    "pods": ("v1", "Pod", "po"),
    "secrets": ("v1", "Secret", ""),
    "services": ("v1", "Service", "svc"),
    "events": ("v1", "Event", "ev"),
    "nodes": ("v1", "Node", "no"),
    "jobs": ("batch/v1", "Job", ""),
    "networkpolicies": ("networking.k8s.io/v1", "NetworkPolicy", "netpol"),
}


@dataclasses.dataclass(frozen=True)
class Request:
    verb: str
    """As in RBAC: get, list, create, patch, delete."""
    resource: str
    """`pods/log` for logs."""
    namespace: str
    name: str
    body: str


def pending(reason: str = "", message: str = "", node: str = "node-1") -> Object:
    """Make a pod that waits: without a reason, its container is being created."""
    waiting = {"reason": reason or "ContainerCreating", **({"message": message} if message else {})}
    return {"phase": "Pending", "nodeName": node, "containerStatuses": [{"state": {"waiting": waiting}}]}


def unschedulable(message: str) -> Object:
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
    return {"phase": "Pending", "conditions": [condition]}


def running() -> Object:
    return {"phase": "Running", "containerStatuses": [{"state": {"running": {}}}]}


def ended(exit_code: int, message: str = "") -> Object:
    """Make a pod whose process has ended. Its Job ends with it, unless it has exit code 1, and its play goes on."""
    terminated = {"exitCode": exit_code, "reason": "Error" if exit_code else "Completed", "message": message}
    return {
        "phase": "Failed" if exit_code else "Succeeded",
        "containerStatuses": [{"state": {"terminated": terminated}}],
    }


def result(exit_code: int = 0, error: str = "", code: str = "policy", **fields: object) -> str:
    """Make a result as a service writes it into the termination message."""
    status = "failed" if exit_code else "complete"
    told = {"code": code, "message": error, "retryable": False} if error else None
    whole = {
        "status": status,
        "version": "0.1.0",
        "exit_code": exit_code,
        "error": told,
        "committed": not exit_code,
        "files": 2,
        "bytes": 3145728,
        "held_bytes": 0,
        "unchecked_bytes": 1024,
        "seconds": 7.9,
        "bytes_per_second": 398193.4,
        "skipped_files": 0,
        "skipped_kinds": {},
        "skipped": [],
        "per_connection": [],
    }
    return json.dumps({**whole, **fields}) + "\n"


def progress(done: int, size: int, rate: int) -> str:
    """Make a line of a sender's log."""
    fields = {"event": "progress", "percent": 0.0, "acknowledged_bytes": done, "size_bytes": size}
    return json.dumps({"level": "info", **fields, "bytes_per_second": rate, "eta_seconds": None}) + "\n"


class Cluster:
    """What an API server keeps. Each play is what the pods of a side go through, the last step for ever."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str, str], Object] = {}
        self.plays: dict[str, list[Object]] = {
            "receiver": [pending(), running(), ended(0, result())],
            "sender": [pending(), running(), ended(0, result())],
        }
        self.logs = {"receiver": "", "sender": progress(1048576, 3145728, 1048576)}
        """Of all pods of a side, or of the pod of that name."""
        self.standards: dict[str, str] = {}
        """The Pod Security Standard that a namespace enforces, if it is not `restricted`."""
        self.address: Object | None = None
        """What the cloud says of a load balancer: `{"ip": ...}`."""
        self.forbidden: set[tuple[str, str]] = set()
        """(verb, resource) that this user may not do."""
        self.is_down = False
        self.requests: list[Request] = []
        self.on_request: Callable[[Request], None] = lambda _: None
        self._steps: dict[str, int] = {}
        self._numbers = itertools.count(1)
        self._lock = threading.RLock()
        """Protects all of the above."""

    # --- for tests

    def add_claim(self, claim: str, *modes: str, phase: str = "Bound", volume_mode: str = "Filesystem") -> None:
        namespace, name = claim.split("/")
        spec = {"accessModes": list(modes or ("ReadWriteOnce",)), "volumeMode": volume_mode}
        self._put("persistentvolumeclaims", namespace, name, {"spec": spec, "status": {"phase": phase}})

    def add_user(self, claim: str, pod: str, node: str) -> None:
        """Add a pod of somebody else that has mounted a claim."""
        namespace, name = claim.split("/")
        volumes = [{"name": "v", "persistentVolumeClaim": {"claimName": name}}, {"name": "w", "emptyDir": {}}]
        spec = {"nodeName": node, "volumes": volumes}
        self._put("pods", namespace, pod, {"spec": spec, "status": {"phase": "Running"}})

    def adopt(self, found: list[Object]) -> None:
        """Add the objects of manifests, as an earlier run of the plugin leaves them."""
        resources = {kind: resource for resource, (_, kind, _) in KINDS.items()}
        for item in found:
            metadata = item["metadata"]
            self._put(resources[item["kind"]], metadata["namespace"], metadata["name"], copy.deepcopy(item))

    def add_earlier_pod(self, of: Object, name: str, status: Object) -> None:
        """Add a pod that a Job has replaced."""
        metadata = {"labels": of["spec"]["template"]["metadata"]["labels"]}
        namespace = of["metadata"]["namespace"]
        self._put("pods", namespace, name, {"metadata": metadata, "spec": {"nodeName": "node-1"}, "status": status})

    def add_event(self, namespace: str, of: str, reason: str, message: str) -> None:
        fields = {"involvedObject": {"name": of}, "type": "Warning", "reason": reason, "message": message}
        self._put("events", namespace, f"{of}.{next(self._numbers)}", fields)

    def named(self, resource: str) -> dict[str, Object]:
        """Return objects by `NAMESPACE/NAME`."""
        with self._lock:
            return {
                f"{where}/{name}": copy.deepcopy(item)
                for (kind, where, name), item in self.objects.items()
                if kind == resource
            }

    def made(self, resource: str) -> list[Object]:
        """Return the objects of a kind in the order in which they were created, also those that are gone."""
        return [json.loads(each.body) for each in self.requests if (each.verb, each.resource) == ("create", resource)]

    def deleted(self) -> set[str]:
        """Return the kinds of which something was deleted."""
        return {each.resource for each in self.requests if each.verb == "delete"}

    def left(self) -> list[str]:
        """Return what is there beside claims, nodes, events and pods of others."""
        kinds = ("jobs", "services", "secrets", "networkpolicies")
        return sorted(f"{kind}/{name}" for kind in kinds for name in self.named(kind))

    def token(self) -> str:
        token: str = self.made("secrets")[0]["stringData"]["token"]
        return token

    # --- for kubectl

    def answer(self, verb: str, path: str, query: dict[str, str], body: str) -> tuple[int, Object | str]:
        parts = path.strip("/").split("/")
        group = 2 if parts[0] == "api" else 3
        rest = parts[group:]
        namespace = ""
        if rest[0] == "namespaces" and len(rest) > 2:
            namespace, rest = rest[1], rest[2:]
        resource, name = rest[0], rest[1] if len(rest) > 1 else ""
        resource = f"{resource}/{rest[2]}" if len(rest) > 2 else resource
        if verb == "get" and not name:
            verb = "list"
        request = Request(verb, resource, namespace, name, body)
        with self._lock:
            self.requests.append(request)
            self.on_request(request)
            if self.is_down:
                return _status(503, "ServiceUnavailable", "the server is currently unable to handle the request")
            if (verb, resource) in self.forbidden:
                text = f'{resource} is forbidden: User "jane" cannot {verb} resource "{resource}"'
                return _status(403, "Forbidden", f'{text} in API group "" in the namespace "{namespace}"')
            return self._answer(request, query)

    def _answer(self, request: Request, query: dict[str, str]) -> tuple[int, Object | str]:
        key = (request.resource, request.namespace, request.name)
        if request.resource == "pods/log":
            pod = self.objects["pods", request.namespace, request.name]
            return 200, self.logs.get(request.name, self.logs[pod["metadata"]["labels"]["app.kubernetes.io/component"]])
        if request.verb == "list":
            if request.resource == "pods":
                self._step()
            kept = [
                item
                for (kind, where, _), item in sorted(self.objects.items())
                if kind == request.resource and request.namespace in ("", where) and _is_selected(item, query)
            ]
            version, kind, _ = KINDS[request.resource]
            items = [{key: value for key, value in item.items() if key not in ("kind", "apiVersion")} for item in kept]
            return 200, {"kind": f"{kind}List", "apiVersion": version, "metadata": {}, "items": items}
        if request.verb == "create":
            return self._create(request)
        if key not in self.objects:
            return _status(404, "NotFound", f'{request.resource} "{request.name}" not found', request)
        item = self.objects[key]
        if request.verb == "patch":
            patch = json.loads(request.body)
            if patch.keys() != {"spec"} or patch["spec"].keys() != {"suspend"}:
                return _status(422, "Invalid", f'{request.resource} "{request.name}" is invalid: field is immutable')
            _merge(item, patch)
        elif request.verb == "delete":
            self._delete(key)
        return 200, item

    def _create(self, request: Request) -> tuple[int, Object | str]:
        made = json.loads(request.body)
        try:
            kubernetes_validate.validate(made, VERSION_OF_SCHEMAS, strict=True)
        except kubernetes_validate.ValidationError as error:
            return _status(400, "BadRequest", f"strict decoding error: {error.message}")
        name = made["metadata"]["name"]
        labels = {**made["metadata"]["labels"], **(labels_of(made) if request.resource == "jobs" else {})}
        if (
            not _is_name(name)
            or made["metadata"]["namespace"] != request.namespace
            or not all(map(_is_name, labels.values()))
        ):
            return _status(422, "Invalid", f'{request.resource} "{name}" is invalid')
        if (request.resource, request.namespace, name) in self.objects:
            return _status(409, "AlreadyExists", f'{request.resource} "{name}" already exists', request)
        return 201, self._put(request.resource, request.namespace, name, made)

    def _put(self, resource: str, namespace: str, name: str, item: Object) -> Object:
        with self._lock:
            version, kind, _ = KINDS[resource]
            item = {"apiVersion": version, "kind": kind, "metadata": {}, **item}
            item["metadata"] = {**item["metadata"], "name": name, "uid": f"uid-{next(self._numbers)}"}
            if namespace:
                item["metadata"]["namespace"] = namespace
            if resource == "services" and item["spec"].get("type", "ClusterIP") != "ClusterIP":
                item["spec"]["ports"][0]["nodePort"] = 31234
            self.objects[resource, namespace, name] = item
            return item

    def _delete(self, key: tuple[str, str, str]) -> None:
        """Delete an object with all that it owns."""
        uid = self.objects.pop(key)["metadata"]["uid"]
        for other, item in list(self.objects.items()):
            if any(each["uid"] == uid for each in item["metadata"].get("ownerReferences", [])):
                self.objects.pop(other, None)

    # --- the controllers

    def _step(self) -> None:
        if self.address is not None:
            for (kind, _, _), item in self.objects.items():
                if kind == "services" and item["spec"].get("type") == "LoadBalancer":
                    item["status"] = {"loadBalancer": {"ingress": [self.address]}}
        for (kind, namespace, name), job in list(self.objects.items()):
            if kind == "jobs" and not job["spec"].get("suspend"):
                self._step_job(namespace, name, job)

    def _step_job(self, namespace: str, name: str, job: Object) -> None:
        component = job["metadata"]["labels"]["app.kubernetes.io/component"]
        play = self.plays[component]
        step = self._steps.get(job["metadata"]["uid"], 0)
        self._steps[job["metadata"]["uid"]] = step + 1
        if not play:
            return
        standard = self.standards.get(namespace, "restricted")
        is_let_in = {"restricted": is_restricted, "baseline": is_baseline}[standard]
        if not is_let_in(pod_of(job), container_of(job)):
            reason = f'Error creating: pods "{name}-abcde" is forbidden: violates PodSecurity "{standard}:latest": …'
            self.add_event(namespace, name, "FailedCreate", reason)
            return
        status = copy.deepcopy(play[min(step, len(play) - 1)])
        count = job["spec"].get("completions", 1)
        for index in range(count):
            owner = {"kind": "Job", "name": name, "uid": job["metadata"]["uid"]}
            pod_name = f"{name}-{index}-abcde" if count > 1 else f"{name}-abcde"
            metadata = {"labels": job["spec"]["template"]["metadata"]["labels"], "ownerReferences": [owner]}
            spec = {**job["spec"]["template"]["spec"], "nodeName": status.get("nodeName", "node-1")}
            if "conditions" in status:
                del spec["nodeName"]
            told = {**status, "hostIP": "192.0.2.7"}
            for each in told.get("containerStatuses", []):
                if "terminated" in each["state"]:
                    each["state"]["terminated"]["finishedAt"] = f"2026-01-01T00:00:{step:02}Z"
            self._put("pods", namespace, pod_name, {"metadata": metadata, "spec": spec, "status": told})
        code = _exit_code(status)
        if code is not None and (code != 1 or step >= len(play) - 1):
            ending = {"type": "Failed", "status": "True", "reason": "PodFailurePolicy", "message": "exit code"}
            job["status"] = {"conditions": [ending if code else {"type": "Complete", "status": "True"}]}


def _exit_code(status: Object) -> int | None:
    for each in status.get("containerStatuses", []):
        if "terminated" in each["state"]:
            code: int = each["state"]["terminated"]["exitCode"]
            return code
    return None


def _is_name(text: str) -> bool:
    """Whether it may be the name of an object, and the value of a label."""
    return re.fullmatch("[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?", text) is not None


def _is_selected(item: Object, query: dict[str, str]) -> bool:
    labels = item["metadata"].get("labels", {})
    for pair in filter(None, query.get("labelSelector", "").split(",")):
        key, value = pair.split("=")
        if labels.get(key) != value:
            return False
    for pair in filter(None, query.get("fieldSelector", "").split(",")):
        key, _, value = pair.partition("=")
        found: Any = item
        for part in key.split("."):
            found = found.get(part, {})
        if found != value:
            return False
    return True


def _merge(into: Object, patch: Object) -> None:
    for key, value in patch.items():
        if isinstance(value, dict):
            _merge(into.setdefault(key, {}), value)
        else:
            into[key] = value


def _status(code: int, reason: str, message: str, request: Request | None = None) -> tuple[int, Object]:
    details = {"name": request.name, "kind": request.resource} if request is not None else {}
    fields = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "details": details}
    return code, {**fields, "message": message, "reason": reason, "code": code}


def _discovery(path: str) -> Object | None:
    """Return what a client asks first: which resources there are."""
    groups = {"batch": "batch/v1", "networking.k8s.io": "networking.k8s.io/v1"}
    if path == "/api":
        return {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []}
    if path == "/apis":
        listed = [
            {"name": name, "versions": [version], "preferredVersion": version}
            for name, version in (
                (name, {"groupVersion": version, "version": "v1"}) for name, version in groups.items()
            )
        ]
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": listed}
    for version in ("v1", *groups.values()):
        if path in (f"/api/{version}", f"/apis/{version}"):
            resources = [
                {
                    "name": name,
                    "singularName": kind.lower(),
                    "namespaced": name != "nodes",
                    "kind": kind,
                    "verbs": ["create", "delete", "get", "list", "patch", "watch"],
                    **({"shortNames": [short]} if short else {}),
                }
                for name, (of, kind, short) in KINDS.items()
                if of == version
            ]
            return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version, "resources": resources}
    if path == "/version":
        return {"major": "1", "minor": "34", "gitVersion": "v1.34.0"}
    return None


VERBS: Final = {"GET": "get", "POST": "create", "PATCH": "patch", "DELETE": "delete"}


def _handler(cluster: Cluster) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # an answer is one packet: a second one would wait for the client's acknowledgement

        def _answer(self) -> None:
            where = urlsplit(self.path)
            query = {key: values[0] for key, values in parse_qs(where.query).items()}
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
            status: int
            answer: Object | str
            known = _discovery(where.path)
            if known is not None:
                status, answer = 200, known
            elif where.path.startswith(("/api/v1/", "/apis/batch/", "/apis/networking")):
                status, answer = cluster.answer(VERBS[self.command], where.path, query, body)
            else:
                status, answer = _status(404, "NotFound", "there is no such page")
            told = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "text/plain" if isinstance(answer, str) else "application/json")
            self.send_header("Content-Length", str(len(told)))
            self.end_headers()
            self.wfile.write(told)

        do_GET = do_POST = do_PATCH = do_DELETE = _answer

        def log_message(self, *_: object) -> None:
            pass

    return Handler


@contextmanager
def serving(clusters: dict[str, Cluster], kubeconfig: Path) -> Iterator[None]:
    """Serve clusters, each under the context of its name, the first of them the current one."""
    servers = {name: ThreadingHTTPServer(("127.0.0.1", 0), _handler(cluster)) for name, cluster in clusters.items()}
    for server in servers.values():
        server.daemon_threads = True
    threads = [
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}) for server in servers.values()
    ]
    for thread in threads:
        thread.start()
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": next(iter(clusters)),
        "clusters": [
            {"name": name, "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}
            for name, server in servers.items()
        ],
        "contexts": [{"name": name, "context": {"cluster": name, "user": "jane"}} for name in servers],
        "users": [{"name": "jane", "user": {}}],
    }
    kubeconfig.write_text(yaml.safe_dump(config))
    try:
        yield
    finally:
        for server in servers.values():
            server.shutdown()
            server.server_close()
        for thread in threads:
            thread.join()
