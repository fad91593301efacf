"""The generated code is what the generator makes of wire.proto, and nothing at run time needs the generator."""

import subprocess
import sys
from pathlib import Path

import pytest

PROTO = Path(__file__).parents[4] / "proto"
GENERATED = ["filestreamer/v1/wire_pb2.py", "filestreamer/v1/wire_pb2.pyi"]


@pytest.fixture(scope="module")
def regenerated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Generate as `make proto` does, into another directory."""
    directory = tmp_path_factory.mktemp("proto")
    outputs = [f"--python_out={directory}", f"--pyi_out={directory}"]
    subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTO}", *outputs, "filestreamer/v1/wire.proto"],
        check=True,
        timeout=30,
    )
    return directory


@pytest.mark.parametrize("name", GENERATED)
def test_committed_code_is_what_the_generator_makes(regenerated: Path, name: str) -> None:
    assert (regenerated / name).read_text() == (PROTO / name).read_text(), f"{name} is out of date: run `make proto`"


def test_nothing_else_is_generated(regenerated: Path) -> None:
    made = sorted(path.relative_to(regenerated).as_posix() for path in regenerated.rglob("*") if path.is_file())

    assert made == GENERATED


def test_the_commands_start_without_grpc(tmp_path: Path) -> None:
    """In an interpreter of its own, from another directory, so that only what is installed is found."""
    modules_of_both = "sender.__main__, sender.coordinator, receiver.__main__, receiver.server.server"
    program = f"import sys, {modules_of_both}; print(*sorted(sys.modules), sep='\\n')"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, check=True, capture_output=True, text=True, timeout=30
    )
    modules = done.stdout.splitlines()

    assert "sender.__main__" in modules
    assert [module for module in modules if module.partition(".")[0] in ("grpc", "grpc_tools")] == []
