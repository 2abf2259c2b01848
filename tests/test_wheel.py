"""The wheel: one installed name, which gets along with whatever packages a Prefect project has of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

import imagemill
from imagemill.emulator import Emulator
from tests.conftest import Place
from tests.installation import ROOT
from tests.patience import PATIENCE_S

FOREIGN = ("flows", "tasks", "blocks", "emulator")
"""Packages that a Prefect project may well have itself, and that imagemill once installed."""

PROJECT = """
import json, sys
import blocks, emulator, flows, tasks
import imagemill
from imagemill import generate_catalog

summary = generate_catalog(
    catalog=sys.argv[1],
    output=json.loads(sys.argv[2]),
    api=json.loads(sys.argv[3]),
    picture={"width": 256, "height": 256},
)
print(json.dumps({
    "imagemill": imagemill.__file__,
    "foreign": [module.__doc__ for module in (flows, tasks, blocks, emulator)],
    "done": summary.done,
}))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT,
        check=True,
        capture_output=True,
        timeout=PATIENCE_S,
    )
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_holds_imagemill_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.partition("/")[0] for name in names if ".dist-info/" not in name} == {"imagemill"}
    assert "imagemill/py.typed" in names
    assert [name for name in names if name.endswith(".html.j2")]


@pytest.mark.slow
def test_a_project_with_packages_of_the_same_names_runs_it(
    wheel: Path,
    tmp_path: Path,
    prefect_server: str,
    place: Place,
    emulator: Callable[..., Emulator],
    catalog: Callable[..., str],
) -> None:
    site, project = tmp_path / "site", tmp_path / "project"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    for name in FOREIGN:
        (project / name).mkdir(parents=True)
        (project / name / "__init__.py").write_text(f'"""foreign {name}"""\n')
    (project / "nightly.py").write_text(PROJECT)
    api = {"provider": "together", "base_url": emulator().base_url}

    done = subprocess.run(
        [
            *(sys.executable, "nightly.py", catalog(prompt=["an owl", "a tram", "an owl"])),
            *(json.dumps(place.settings()), json.dumps(api)),
        ],
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(site), "PREFECT_API_URL": prefect_server},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "imagemill": str(site / "imagemill" / "__init__.py"),
        "foreign": [f"foreign {name}" for name in FOREIGN],
        "done": 2,
    }


def test_every_public_name_is_there_and_none_is_loaded_before_it_is_asked_for() -> None:
    code = "import imagemill, sys; print(*sorted(m for m in sys.modules if m.startswith('imagemill')))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert loaded.split() == ["imagemill"]
    assert {name for name in dir(imagemill) if name in imagemill.__all__} == set(imagemill.__all__)
    assert all(getattr(imagemill, name) for name in imagemill.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = imagemill.nothing
