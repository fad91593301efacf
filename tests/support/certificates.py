"""Certificates for tests, made by the `openssl` command (Debian: package openssl): a need of the tests alone.

authority = Authority(tmp_path, "ca")
receiver = authority.issue("receiver")          # for 127.0.0.1, ::1 and localhost
authority.issue("old", expired=True)
"""

import hashlib
import shutil
import ssl
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

HERE = ("IP:127.0.0.1", "IP:::1", "DNS:localhost")
"""The names of this machine that tests connect to."""

_CA_SETTINGS = """\
[ca]
default_ca = here
[here]
dir = {directory}
new_certs_dir = $dir
database = $dir/{name}.index
rand_serial = yes
default_md = sha256
policy = anything
copy_extensions = copy
unique_subject = no
[anything]
commonName = supplied
"""


class Pem(NamedTuple):
    """A certificate and its key, as files."""

    certificate: Path
    key: Path

    @property
    def shown(self) -> tuple[object, ...]:
        """The flags with which either service shows it."""
        return "--tls-cert", self.certificate, "--tls-key", self.key

    @property
    def sha256(self) -> bytes:
        """The digest that proofs are bound to."""
        return hashlib.sha256(ssl.PEM_cert_to_DER_cert(self.certificate.read_text())).digest()


def openssl(*args: object) -> None:
    """Run openssl. Fails where it is missing: these tests are not skipped."""
    command = shutil.which("openssl")
    assert command, "the command openssl is missing: install it (Debian: package openssl)"
    done = subprocess.run(
        [command, *map(str, args)], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, f"openssl {' '.join(map(str, args))}:\n{done.stderr}"


def make_key(path: Path) -> Path:
    """Make a key, which takes no time: an elliptic curve."""
    openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", path)
    return path


class Authority:
    """Signs certificates. `certificate` is what `--tls-ca` takes."""

    def __init__(self, directory: Path, name: str, above: "Authority | None" = None) -> None:
        """Make a CA that signs itself, or one that `above` has signed: an intermediate."""
        self._directory = directory
        self._settings = directory / f"{name}.settings"
        self._settings.write_text(_CA_SETTINGS.format(directory=directory, name=name))
        (directory / f"{name}.index").write_text("")
        self._key = make_key(directory / f"{name}.key")
        self.certificate = directory / f"{name}.pem"
        subject = f"/CN=filestreamer test {name}"
        if above is None:
            openssl("req", "-x509", "-key", self._key, "-subj", subject, "-days", 2, "-out", self.certificate)
        else:
            above.sign(self._key, subject, self.certificate, "basicConstraints=critical,CA:TRUE")

    @property
    def trusted(self) -> tuple[object, ...]:
        """The flags with which either service trusts it."""
        return "--tls-ca", self.certificate

    def issue(
        self,
        name: str,
        *names: str,
        expired: bool = False,
        extensions: Sequence[str] = (),
        times: Sequence[object] = (),
        digest: str = "sha256",
        key: Path | None = None,
    ) -> Pem:
        """Sign a certificate for `names`, by default those of this machine; it is good for two days, or no more.

        `extensions` are more of them, such as `extendedKeyUsage=clientAuth`; `times` are flags of `openssl ca`.
        """
        key = key or make_key(self._directory / f"{name}.key")
        made = Pem(self._directory / f"{name}.pem", key)
        alternatives = f"subjectAltName={','.join(names or HERE)}"
        times = ("-startdate", "20200101000000Z", "-enddate", "20200102000000Z") if expired else times
        self.sign(key, f"/CN={name}", made.certificate, alternatives, *extensions, times=times, digest=digest)
        return made

    def sign(
        self,
        key: Path,
        subject: str,
        out: Path,
        *extensions: str,
        times: Sequence[object] = (),
        digest: str = "sha256",
    ) -> None:
        """Sign a certificate with these extensions."""
        request = out.with_suffix(".csr")
        added = [part for extension in extensions for part in ("-addext", extension)]
        openssl("req", "-new", "-key", key, "-subj", subject, *added, "-out", request)
        openssl(
            *("ca", "-batch", "-notext", "-config", self._settings, "-cert", self.certificate, "-keyfile", self._key),
            *("-in", request, "-out", out, "-md", digest, *(times or ("-days", 2))),
        )
