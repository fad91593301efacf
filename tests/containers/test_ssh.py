"""The other side in a container that ssh starts: `--remote-command 'docker run ...'`, as README has it."""

import os
import shutil
from pathlib import Path

import pytest

from tests.support import services
from tests.support.disks import MIB
from tests.support.services import make_file, same
from tests.support.sshd import sshd

DOCKER = shutil.which("docker") or "docker"


@pytest.mark.parametrize("via", ["direct", "ssh"])
def test_push_and_pull(images: None, tmp_path: Path, seed: int, via: str) -> None:
    there = tmp_path / "there"
    for directory in (there, tmp_path / "near", tmp_path / "sshd"):
        directory.mkdir()
    user = f"{os.getuid()}:{os.getgid()}"
    run = f"{DOCKER} run -i --rm --network host -e SSH_CONNECTION --user {user} -v {there}:/srv"
    with sshd(tmp_path / "sshd", commands={}) as far, services.pair(tmp_path / "near") as pair:
        file = make_file(pair.source / "big.iso", 20 * MIB, seed)
        how = ("--ssh", far.ssh, "--via", via)
        pushed = pair.start(
            "sender", file, "--to", f"{far.host}:/srv/incoming", *how, "--remote-command", f"{run} receiver"
        )
        assert pushed.succeeds()["files"] == 1
        assert same(file, there / "incoming" / "big.iso")
        pulled = pair.start(
            "receiver",
            *("--from", f"{far.host}:/srv/incoming", "--directory", pair.destination),
            *how,
            *("--remote-command", f"{run} sender"),
        )
        assert pulled.succeeds()["files"] == 1
        assert same(file, pair.destination / "incoming" / "big.iso")
        assert [line["way"] for line in (*pushed.events("way"), *pulled.events("way"))] == [via, via]
