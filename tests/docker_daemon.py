"""A Docker daemon of the tests' own, and a base image made on the spot: it needs no hub."""

from __future__ import annotations

import fcntl
import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from tests.installation import ROOT
from tests.servers import Server

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "imagemill-tests"
"""Keeps layers from one run of the tests to the next, where the machine is kept."""
BASE = "python:3.11-slim"
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy")
_FETCH = ("sh", "-c", "python -m venv /try && /try/bin/pip download --no-deps --dest /try hatchling")
_CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")


class DockerDaemon(Server):
    """dockerd without a network of its own: containers have the machine's, or none."""

    def __init__(self, data: Path | None = None) -> None:
        super().__init__()
        self._data = data or self.folder / "data"
        self.host = f"unix://{self.folder}/docker.sock"

    def command(self) -> list[str]:
        program = shutil.which("dockerd")
        if program is None or os.geteuid():
            raise RuntimeError("there is no dockerd here, or no right to start it")
        return [
            program, "--host", self.host, "--data-root", str(self._data),
            "--exec-root", str(self.folder / "exec"), "--pidfile", str(self.folder / "pid"),
            "--bridge", "none", "--iptables=false", "--ip6tables=false",
        ]  # fmt: skip

    def answers(self) -> bool:
        return self._run("info").returncode == 0

    def docker(self, *arguments: str) -> str:
        """Run one docker command to its end, which must be a good one; what it printed."""
        done = self._run(*arguments)
        assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
        return done.stdout.strip()

    def build(self, image: str) -> None:
        """Build the project's image, on a base image that is made here if none is kept."""
        if self._run("image", "inspect", BASE).returncode:
            self._make_base()
        proxies = [f"--build-arg={name}" for name in _PROXIES if name in os.environ]
        how = ("build", "--network", "host", *proxies)
        packages = self._run(
            *how, "--target", "packages", "--tag", "imagemill-packages", str(ROOT)
        )  # is kept
        if packages.returncode and self._run("run", "--rm", "--network", "host", BASE, *_FETCH).returncode:
            raise RuntimeError("a container has no access to a package index here")
        self.docker(*how, "--tag", image, str(ROOT))

    def _make_base(self) -> None:
        """Debian and its Python where python:3.11-slim has them, with this machine's certificates."""
        root = self.folder / "root.tar"
        hooks = ['ln -s /usr/bin/python3.11 "$1/usr/local/bin/python"']
        if _CERTIFICATES.exists():
            index = shlex.quote(os.environ.get("PIP_INDEX_URL", "https://pypi.org/simple"))
            settings = rf'"[global]\ncert = {_CERTIFICATES}\nindex-url = %s\n"'
            hooks += [
                f"upload {_CERTIFICATES} {_CERTIFICATES}",
                f'printf {settings} {index} > "$1/etc/pip.conf"',
            ]
        made = subprocess.run(
            [
                "mmdebstrap", "--variant=minbase", "--include=ca-certificates,python3.11-venv",
                *(f"--customize-hook={hook}" for hook in hooks), "bookworm", root,
            ],
            capture_output=True,
            text=True,
            check=False,
        )  # fmt: skip
        if made.returncode:
            raise RuntimeError(f"no base image can be made here: {made.stderr[-500:]}")
        path = "/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"
        self.docker("import", "--change", f"ENV PATH={path}", str(root), BASE)
        root.unlink()

    def _run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["docker", "--host", self.host, *arguments],
            env={**os.environ, "DOCKER_BUILDKIT": "0"},  # which asks the hub
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )


@cache
def why_not() -> str | None:
    """Why no daemon can be started here, in a few words; None if one can."""
    if not all(map(shutil.which, ("docker", "dockerd", "mmdebstrap"))):
        return "docker.io and mmdebstrap are not installed"
    try:
        with DockerDaemon():
            return None
    except RuntimeError as error:
        return f"dockerd does not start here: {str(error)[-300:]}"


@contextmanager
def docker_daemon() -> Iterator[DockerDaemon]:
    """A daemon with the layers of the last time; two at once wait for each other."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with DockerDaemon(CACHE / "docker") as daemon:
            yield daemon
            daemon.docker("container", "prune", "--force")
            daemon.docker("volume", "prune", "--force")
            daemon.docker("image", "prune", "--force")
