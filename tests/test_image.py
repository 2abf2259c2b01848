"""The container: the steps of the Dockerfile done by hand in an empty folder, with only its environment.

Where a Docker daemon can be started, tests/flows/test_containers.py builds and runs the real image instead.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shlex
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import dataclass, field
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from packaging.requirements import Requirement
from PIL import Image

from tests.docker_daemon import why_not
from tests.installation import ROOT
from tests.patience import PATIENCE_S


@dataclass
class Stage:
    """What a stage of the Dockerfile does, in its own words."""

    copied: list[tuple[list[str], str]] = field(default_factory=list)
    run: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    health: list[str] = field(default_factory=list)
    rest: dict[str, str] = field(default_factory=dict)


def stages() -> list[Stage]:
    """The stages of the Dockerfile, in order."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.startswith("#")]
    made = list[Stage]()
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        instruction, _, given = line.partition(" ")
        if instruction == "FROM":
            made.append(Stage())
        elif instruction == "COPY":
            *sources, target = given.split()
            made[-1].copied.append((sources, target))
        elif instruction == "RUN":
            made[-1].run.append(given)
        elif instruction == "ENV":
            made[-1].environment |= dict(pair.split("=", 1) for pair in shlex.split(given))
        elif instruction == "HEALTHCHECK":
            made[-1].health = json.loads(given.partition("CMD ")[2])
        elif instruction:
            made[-1].rest[instruction] = given
    return made


def is_sent(name: str) -> bool:
    """Whether .dockerignore lets a file of the project into the build."""
    sent = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.removeprefix("!")
        parts = Path(name).parts if pattern.startswith("**/") else Path(name).parts[:1]
        if pattern and any(fnmatch.fnmatch(part, pattern.removeprefix("**/")) for part in parts):
            sent = line.startswith("!")
    return sent


def test_nothing_is_sent_to_the_build_but_what_it_needs() -> None:
    sent = {path.name for path in ROOT.iterdir() if is_sent(path.name)}
    assert sent == {name for stage in stages()[:2] for names, _ in stage.copied for name in names}
    for secret in (".env", ".git/config", "imagemill/__pycache__/x.pyc", "imagemill-demo/catalog.parquet"):
        assert not is_sent(secret)


def test_the_image_has_no_rights_and_no_secrets() -> None:
    linter = Path(sys.executable).with_name("hadolint")
    subprocess.run([linter, ROOT / "Dockerfile"], check=True)
    final = stages()[-1]
    assert final.rest["USER"] == "1000:1000"
    assert final.rest["VOLUME"] == final.rest["WORKDIR"] == "/data"
    assert "ENTRYPOINT" not in final.rest  # Prefect's workers name the whole command
    text = (ROOT / "Dockerfile").read_text()
    assert not re.search(r"_KEY|_TOKEN|PASSWORD|SECRET|\.env\b", text)


def link_requirements(of: list[str], target: Path) -> None:
    """Put the packages that these need into a folder, from this environment: what pip would install there."""
    target.mkdir(parents=True, exist_ok=True)
    waiting, seen = [Requirement(name) for name in of], set[str]()
    while waiting:
        needed = waiting.pop()
        found = distribution(needed.name)
        if needed.name not in seen:
            for top in {file.parts[0] for file in found.files or () if ".." not in file.parts}:
                link = target / top
                if not link.exists():
                    link.symlink_to(Path(str(found.locate_file(top))))
        seen.add(needed.name)
        for line in found.requires or ():
            more = Requirement(line)
            wanted = more.marker is None or any(
                more.marker.evaluate({"extra": extra}) for extra in ("", *needed.extras)
            )
            if wanted and more.name not in seen:
                waiting.append(more)


@dataclass
class Container:
    """What the Dockerfile makes, below ``root``."""

    root: Path

    def inside(self, text: str) -> str:
        """The same with the image's folders where they are here."""
        return re.sub(r"(?<![\w.])/(opt|data|src)\b", rf"{self.root}/\1", text)

    def build(self) -> None:
        packages, build, final = stages()
        source = Path(self.inside(packages.rest["WORKDIR"]))
        link_requirements(["hatchling"], self.root / "backend")
        here = {  # this environment stands for the registry
            "PIP_NO_DEPS": "1", "PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0",
            "PYTHONPATH": str(self.root / "backend"), "PATH": os.environ["PATH"], "EXTRAS": "",
        }  # fmt: skip
        for stage in (packages, build):
            for name in [name for names, _ in stage.copied for name in names]:
                for file in [ROOT / name, *(ROOT / name).rglob("*")]:
                    relative = file.relative_to(ROOT)
                    if file.is_file() and is_sent(str(relative)):
                        (source / relative).parent.mkdir(parents=True, exist_ok=True)
                        shutil.copyfile(file, source / relative)
            for step in stage.run:
                self._run(self.inside(step), source, here, shell=True)
        for (_, copied), target in final.copied:
            if copied != target:  # all stages share one root
                shutil.copytree(self.inside(copied), self.inside(target), symlinks=True, dirs_exist_ok=True)
        for step in final.run:
            self._run(self.inside(step), source, here, shell=True)
        (site,) = self.root.glob("opt/imagemill/lib/python*/site-packages")
        wheel = next(site.glob("imagemill-*.dist-info")) / "METADATA"
        needed = [line for line in wheel.read_text().splitlines() if line.startswith("Requires-Dist: ")]
        own = [line.partition(": ")[2] for line in needed if "extra ==" not in line]
        link_requirements(own, site)

    def run(self, *command: str) -> str:
        """Run a command to its end, which must be a good one; what it printed."""
        environment = {name: self.inside(value) for name, value in stages()[-1].environment.items()}
        environment["PATH"] = environment["PATH"].replace("$PATH", "/usr/bin:/bin")
        program = shutil.which(command[0], path=environment["PATH"])
        return self._run((str(program), *command[1:]), self.root / "data", environment)

    @staticmethod
    def _run(command: str | tuple[str, ...], cwd: Path, environment: dict[str, str], **how: Any) -> str:
        done = subprocess.run(
            command,
            cwd=cwd,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
            **how,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def container(tmp_path_factory: pytest.TempPathFactory) -> Container:
    if why_not() is None:
        pytest.skip("a Docker daemon can be started: tests/flows/test_containers.py uses one")
    made = Container(tmp_path_factory.mktemp("image"))
    made.build()
    return made


@pytest.mark.slow
def test_the_image_is_healthy_and_runs_the_demo(container: Container) -> None:
    assert container.run(*stages()[-1].health).startswith("imagemill ")

    before = set(container.root.glob("opt/imagemill/**/*"))
    out = container.run("imagemill", "demo", "--images", "60")

    folder = Path(re.findall(r"report +(\S+)/report\.html", out)[0])
    assert "images/min" in out
    assert "The emulated API charged" in out
    rows = pq.read_table(folder / "manifest.parquet").to_pylist()
    assert [row["status"] for row in rows].count("rejected") == 3
    assert len({row["uri"] for row in rows if row["uri"]}) < len(rows) - 3
    for picture in (folder / "images").iterdir():
        with Image.open(picture) as image:
            image.load()
    assert "<svg" in (folder / "report.html").read_text()
    assert pq.read_table(folder / "records" / "metrics.parquet").num_rows > 0
    (database,) = container.root.glob("data/**/prefect.db")
    with closing(sqlite3.connect(database)) as prefect:  # its server had every line before it ended
        (last,) = prefect.execute("SELECT message FROM log ORDER BY timestamp DESC LIMIT 1").fetchone()
    assert "images are done" in last
    following = [line.split() for line in out.splitlines() if line.startswith("  imagemill ")]
    assert [command[1] for command in following] == ["check", "estimate", "run"]
    assert "rows" in container.run(*following[1])
    assert set(container.root.glob("opt/imagemill/**/*")) == before  # it wrote to /data alone
