"""The images on a real engine: built once, and started as the services of a transfer on a network of its own.

Every container is locked down as far as an operator can: a read-only root, no capabilities, no new privileges, and a
user that is not root.
"""

import contextlib
import math
import os
import re
import shlex
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import docker
from docker.models.containers import Container as EngineContainer
from docker.models.networks import Network as EngineNetwork
from prometheus_client.parser import text_string_to_metric_families
from testcontainers.core.container import DockerContainer
from testcontainers.core.network import Network

from tests.support.services import HANG, UNIT, Command, make_file
from tests.support.staging import Staging

ROOT: Final = Path(__file__).parent.parent.parent
BASE: Final = "filestreamer-base"
CA_BUNDLE: Final = Path("/etc/ssl/certs/ca-certificates.crt")
USER: Final = os.getuid() or 10001
"""Who the containers run as: the images' own user, but who isn't root here can clean up only what is theirs."""

LOCKED: Final[Mapping[str, Any]] = {
    "read_only": True,
    "cap_drop": ["ALL"],
    "security_opt": ["no-new-privileges"],
    **({} if USER == 10001 else {"user": f"{USER}:{os.getgid()}"}),
}
METRICS_PORT: Final[Mapping[str, int]] = {"receiver": 9464, "sender": 9465}
TOKEN: Final = "a token of the containers"

Sample = tuple[str, frozenset[tuple[str, str]]]


def documented(heading: str) -> list[str]:
    """Return the shell blocks of a section of deploy/README.md: what an operator types."""
    text = (ROOT / "deploy/README.md").read_text()
    section = re.search(rf"^##+ {re.escape(heading)}\n(.*?)(?=^##+ |\Z)", text, re.MULTILINE | re.DOTALL)
    assert section, f"deploy/README.md has no section {heading}"
    return re.findall(r"^```sh\n(.*?)^```$", section[1], re.MULTILINE | re.DOTALL)


def build_images() -> None:
    """Make the images as the README says where there is no registry; the base only where it is not there yet."""
    _, without_registry = documented("Build")
    make_base, *builds = without_registry.splitlines()
    if not inspect("image", "ls", "--quiet", BASE):
        run(make_base)
    trusted = f"docker build --secret id=ca,src={CA_BUNDLE} " if CA_BUNDLE.exists() else "docker build "
    for build in builds:
        run(build.replace("docker build ", trusted))


def inspect(*args: str) -> str:
    """Ask the engine's client; return what it says."""
    return run(shlex.join(["docker", *args])).strip()


def run(script: str, cwd: Path = ROOT, env: Mapping[str, str] | None = None, seconds: float = 30 * UNIT) -> str:
    """Run what an operator would type; return what it wrote to standard output."""
    with started(script, cwd, env) as process:
        out, err = process.communicate(timeout=seconds)
    assert process.returncode == 0, f"exit code {process.returncode} from:\n{script}\n{out}{err}"
    return out


def started(script: str, cwd: Path = ROOT, env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    """Start what an operator would type."""
    # The engine's own client goes before a newer one that may not fit it.
    settings = {**os.environ, "PATH": f"/usr/bin:{os.environ['PATH']}", "DOCKER_BUILDKIT": "1", **(env or {})}
    pipe = subprocess.PIPE
    return subprocess.Popen(["bash", "-euc", script], cwd=cwd, env=settings, stdout=pipe, stderr=pipe, text=True)


class Container(Command):
    """One container of an image. This machine reaches it by its address on the network, as other containers do."""

    def __init__(
        self,
        image: str,
        *args: object,
        name: str,
        network: Network,
        data: tuple[Path, str] | int,
        env: Mapping[str, str],
        **options: Any,
    ) -> None:
        """Describe `docker run IMAGE ARGS`.

        `name` is its name on the network; `data` is what it has as /data: a directory and its mode (ro, rw), or the
        bytes of a file system in memory; `options` are those of the engine.
        """
        self.command = image
        self.name = name
        self._made = (
            DockerContainer(image, env=dict(env), **{**LOCKED, **options})
            .with_command([str(arg) for arg in args])
            .with_network(network)
            .with_network_aliases(name)
        )
        if isinstance(data, int):
            self._made.with_tmpfs_mount("/data", f"size={data},uid={USER}")
        else:
            self._made.with_volume_mapping(data[0], "/data", data[1])

    def start(self) -> "Container":
        """Create and start it."""
        self._made.start()
        return self

    def remove(self) -> None:
        """Kill it if it runs, and remove it. Idempotent."""
        with contextlib.suppress(docker.errors.NotFound):
            self._made.stop()

    # --- what Command asks for

    @property
    def engine(self) -> EngineContainer:
        """What the engine knows of it: kill, pause, start, stop."""
        return self._made.get_wrapped_container()

    @property
    def stdout(self) -> str:
        """All that was written to standard output so far."""
        return self.engine.logs(stdout=True, stderr=False).decode()

    @property
    def stderr(self) -> str:
        """All that was written to standard error so far."""
        return self.engine.logs(stdout=False, stderr=True).decode()

    def poll(self) -> int | None:
        """Return the exit code, None while it runs."""
        self.engine.reload()
        state = self.engine.attrs["State"]
        return None if state["Running"] or state["Status"] == "created" else int(state["ExitCode"])

    def wait(self, seconds: float = HANG) -> int:
        """Wait for the end; return the exit code."""
        until(lambda: self.poll() is not None, f"{self.name} still runs", seconds, lambda: self.stderr)
        code = self.poll()
        assert code is not None
        return code

    def read(self, path: str) -> str:
        """Read a file as its process sees it."""
        return self.execute(f"print(open({path!r}).read(), end='')")

    def execute(self, script: str) -> str:
        """Run Python beside its process; return what it printed."""
        code, output = self.engine.exec_run(["python", "-c", script])
        assert code == 0, output
        assert isinstance(output, bytes)
        return output.decode()

    # --- what is seen from outside

    @property
    def address(self) -> str:
        """Its address on the network; empty while it is unplugged."""
        self.engine.reload()
        return "".join(network["IPAddress"] for network in self.engine.attrs["NetworkSettings"]["Networks"].values())

    def metrics(self) -> dict[Sample, float]:
        """Scrape it once, as soon as it serves."""
        self.wait_for("metrics")
        url = f"http://{self.address}:{METRICS_PORT[self.command]}/metrics"
        with urllib.request.urlopen(url, timeout=HANG) as answer:
            text = answer.read().decode()
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    @property
    def health(self) -> str:
        """What the engine's health check says: starting, healthy or unhealthy."""
        self.engine.reload()
        return str(self.engine.attrs["State"]["Health"]["Status"])

    def total(self, name: str) -> float:
        """Scrape it once, and add up one metric over all its labels."""
        return sum(
            value for (sample, _), value in self.metrics().items() if sample == f"filestreamer_{self.command}_{name}"
        )

    def wait_for_total(self, name: str, *, above: float, at_most: float = math.inf, seconds: float = HANG) -> None:
        """Scrape it until `total` of a metric is between these."""
        until(lambda: above < self.total(name) <= at_most, f"{self.name}: {name} is not above {above}", seconds)


class Site:
    """A private network, a source and a destination directory, and the containers that were started there."""

    def __init__(self, root: Path, network: Network) -> None:
        self.network = network
        self.source = root / "source"
        self.destination = root / "destination"
        self.source.mkdir()
        self.destination.mkdir()
        self.destination.chmod(0o777)  # for a user that this machine does not know
        self.containers: list[Container] = []

    def receiver(
        self, *args: object, name: str = "receiver", token: str | None = TOKEN, memory: int = 0, **options: Any
    ) -> Container:
        """Start a receiver into `destination`, or into a file system in memory of so many bytes."""
        data = memory or (self.destination, "rw")
        return self._start("receiver", *args, name=name, token=token, data=data, **options)

    def sender(
        self, file: Path, *args: object, name: str = "sender", token: str | None = TOKEN, **options: Any
    ) -> Container:
        """Start a sender of a file of `source` to the receiver."""
        data = (self.source, "ro")
        args = (file.name, "--to", "receiver:7800", *args)
        return self._start("sender", *args, name=name, token=token, data=data, **options)

    def _start(
        self, image: str, *args: object, token: str | None, env: Mapping[str, str] | None = None, **options: Any
    ) -> Container:
        env = {**({} if token is None else {"FILESTREAMER_TOKEN": token}), **(env or {})}
        container = Container(image, *args, network=self.network, env=env, **options)
        self.containers.append(container)
        return container.start()

    def file(self, name: str, size: int, seed: int = 0) -> Path:
        """Make a source file of random bytes that everybody may read."""
        return make_file(self.source / name, size, seed)

    def staging(self, name: str) -> Staging:
        """Return what the destination holds of an incomplete file."""
        return Staging(self.destination, name)

    def received(self) -> list[str]:
        """Every name in the destination, the staging directory included."""
        return sorted(os.listdir(self.destination))

    def disconnect(self, container: Container) -> None:
        """Unplug a container from the network."""
        self._engine_network().disconnect(container.engine)

    def connect(self, container: Container) -> None:
        """Plug a container in again, under its name; its address may be another one."""
        self._engine_network().connect(container.engine, aliases=[container.name])

    def _engine_network(self) -> EngineNetwork:
        return docker.from_env().networks.get(self.network.name)

    def end(self) -> None:
        """Remove every container."""
        for container in self.containers:
            container.remove()


@contextlib.contextmanager
def site(root: Path) -> Iterator[Site]:
    """Make a site that is gone with the block."""
    with Network() as network:
        made = Site(root, network)
        try:
            yield made
        finally:
            made.end()


def until(
    condition: Callable[[], bool], otherwise: str, seconds: float = HANG, details: Callable[[], str] = str
) -> None:
    """Wait until a condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{otherwise} after {seconds} s: {details()}"
        time.sleep(0.05)
