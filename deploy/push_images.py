"""Builds both images for several platforms, pushes them, and names them by digest in the manifests.

    make images REGISTRY=registry.example/team [PLATFORMS=linux/amd64,linux/arm64] [ARGS='--build-arg ...']

Needs docker's buildx, with a builder for these platforms (deploy/README.md). The images component and the kubectl
plugin are written when both images are in the registry, and not before.
"""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

TOP = Path(__file__).parents[1]
COMPONENT = TOP / "deploy" / "kubernetes" / "components" / "images" / "kustomization.yaml"
PLUGIN = TOP / "deploy" / "kubernetes" / "kubectl-filestreamer"
SERVICES = ("receiver", "sender")

HEADER = """\
# The one place that says which images these manifests run: written by `make images REGISTRY={registry}`.
# Each is what its digest says, whatever becomes of a tag, for every platform that it was built for.
apiVersion: kustomize.config.k8s.io/v1alpha1
kind: Component

images:
"""
IMAGE = """\
  - name: filestreamer/{service}
    newName: {registry}/{service}
    digest: {digest} # {version}
"""


def version() -> str:
    """Return the version of the code."""
    (found,) = re.findall(r'^VERSION\b.*"(.+)"$', (TOP / "proto/filestreamer/version.py").read_text(), re.MULTILINE)
    return str(found)


def push(service: str, registry: str, platforms: str, arguments: list[str]) -> str:
    """Build an image for some platforms and push it under its version; return its digest."""
    with TemporaryDirectory() as folder:
        told = Path(folder) / "told.json"
        command = ["docker", "buildx", "build", "--platform", platforms, "--push", "--metadata-file", str(told)]
        command += ["--file", "deploy/Dockerfile", "--target", service, "--tag", f"{registry}/{service}:{version()}"]
        subprocess.run([*command, *arguments, "."], cwd=TOP, check=True)
        return str(json.loads(told.read_text())["containerimage.digest"])


def name_in_plugin(image: str, service: str) -> None:
    """Make an image the default of the plugin."""
    variable = f"{service.upper()}_IMAGE"
    line = f"{variable}=${{FILESTREAMER_{variable}:-{image}}}"
    text, count = re.subn(rf"^{variable}=.*$", lambda _: line, PLUGIN.read_text(), flags=re.MULTILINE)
    assert count == 1
    PLUGIN.write_text(text)


def main(registry: str, platforms: str, *arguments: str) -> str | None:
    """Push both images and name them in the component; return what went wrong, if that did."""
    has_docker = shutil.which("docker") is not None
    if not has_docker or subprocess.run(["docker", "buildx", "version"], capture_output=True, check=False).returncode:
        return (
            "docker's buildx is missing (packages docker-buildx, docker-buildx-plugin): it builds for several platforms"
        )
    registry = registry.rstrip("/")
    try:
        digests = {service: push(service, registry, platforms, list(arguments)) for service in SERVICES}
    except subprocess.CalledProcessError as error:
        return f"docker buildx build ended with {error.returncode}; the manifests are as they were"
    images = [
        IMAGE.format(service=service, registry=registry, digest=digest, version=version())
        for service, digest in digests.items()
    ]
    COMPONENT.write_text(HEADER.format(registry=registry) + "".join(images))
    for service, digest in digests.items():
        name_in_plugin(f"{registry}/{service}@{digest}", service)
    sys.stdout.write(f"{COMPONENT.relative_to(TOP)} and {PLUGIN.relative_to(TOP)} name both by digest\n")
    return None


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
