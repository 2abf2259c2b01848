"""What a run costs beside work of a known size: fails where a cost has doubled, on any machine."""

from __future__ import annotations

import base64
import random
import subprocess
import sys
import time
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from imagemill.blocks.apis import Together
from imagemill.blocks.apis.exchange import decoded
from imagemill.catalog.files import open_catalog
from imagemill.catalog.plan import Planner, write_plan
from imagemill.settings import CatalogSettings, PictureSettings

ROWS = 40_000


def test_a_row_is_planned_at_the_cost_of_a_few_digests(tmp_path: Path) -> None:
    prompts = [f"a vase no. {number % 35_000} on a walnut table, in soft light" for number in range(ROWS)]
    catalog = tmp_path / "catalog.parquet"
    pq.write_table(pa.table({"id": [f"row-{number}" for number in range(ROWS)], "prompt": prompts}), catalog)

    def plan() -> None:
        planner = Planner(Together(api_key="of-a-test"), PictureSettings())
        files = open_catalog(CatalogSettings(path=str(catalog)))
        write_plan(planner, files, tmp_path / "plan", tmp_path / "rejected", lambda _jobs: None)

    def digest_each_row_twice() -> None:
        for prompt in prompts:
            blake2b(prompt.encode(), digest_size=20).hexdigest()
            blake2b(prompt.encode(), digest_size=4).digest()

    assert cpu_s(plan) < 10 * cpu_s(digest_each_row_twice)


def test_an_image_is_decoded_in_less_than_the_standard_library_takes() -> None:
    text = base64.b64encode(random.Random(1).randbytes(1_000_000)).decode()
    assert cpu_s(lambda: decoded(text)) < 0.5 * cpu_s(lambda: base64.b64decode(text))


def test_the_command_loads_only_what_it_needs() -> None:
    assert loaded_by("import imagemill") & {"prefect", "pydantic", "pyarrow", "boto3"} == set()
    parser = "from imagemill.cli.parser import parser; parser([{}])"
    assert loaded_by(parser.format("")) & {"pydantic", "rich"} == set()
    assert loaded_by(parser.format("'run'")) & {"prefect", "pyarrow", "boto3", "numpy", "rich"} == set()
    run = "import imagemill.cli.running, imagemill.flows.generate_catalog"
    assert (
        loaded_by(run) & {"pandas", "sqlalchemy", "redis", "prefect.server", "prefect_aws", "dask"} == set()
    )


def loaded_by(statement: str) -> set[str]:
    """The modules that a new process has loaded after it."""
    command = [sys.executable, "-c", f"{statement}; import sys; print(*sys.modules)"]
    return set(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())


def cpu_s(action: Callable[[], object]) -> float:
    """The least CPU of three times, in seconds, of this process with all its threads."""
    taken = []
    for _ in range(3):
        begun = time.process_time()
        action()
        taken.append(time.process_time() - begun)
    return min(taken)
