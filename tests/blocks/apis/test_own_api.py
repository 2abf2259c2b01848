"""The example of an API of one's own works as it stands, and its negative prompt enters the key."""

from __future__ import annotations

import base64
import importlib.util
import json
import random
from pathlib import Path
from typing import Any

import anyio
import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from imagemill.blocks.apis import ImageApi, Together
from imagemill.catalog.files import open_catalog
from imagemill.catalog.plan import Planner
from imagemill.errors import ApiError, ErrorClass, InputError
from imagemill.jobs import Job
from imagemill.settings import CatalogSettings, PictureSettings
from tests.blocks.apis.variants import make_job

EXAMPLE = Path(__file__).parents[3] / "examples" / "own_api.py"


@pytest.fixture(scope="module")
def own_api() -> type[ImageApi]:
    spec = importlib.util.spec_from_file_location("own_api", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: type[ImageApi] = module.OwnApi
    return found


def ask(api: ImageApi, job: Job, answer: httpx.Response) -> tuple[bytes, float, httpx.Request]:
    asked: list[httpx.Request] = []

    def handle(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return answer

    async def accepted(_: str) -> None:
        pytest.fail("nothing is queued")

    async def generate() -> tuple[bytes, float]:
        async with httpx.AsyncClient(transport=httpx.MockTransport(handle)) as http:
            image = await api.generate(http, job, accepted)
            return image.content, image.cost_usd

    content, cost_usd = anyio.run(generate)
    return content, cost_usd, asked[0]


def test_the_example_asks_and_reads(own_api: type[ImageApi]) -> None:
    api = own_api(api_key="key-of-this-test")
    job = make_job(api)
    job.negative_prompt = "people"
    answer = httpx.Response(200, json={"picture": base64.b64encode(b"picture").decode()})
    content, cost_usd, request = ask(api, job, answer)
    assert (content, cost_usd) == (b"picture", 0.0005)
    assert str(request.url) == "http://gpu.internal:8000/paint"
    assert request.headers["authorization"] == "Bearer key-of-this-test"
    assert json.loads(request.content)["without"] == "people"


def test_the_example_reads_errors(own_api: type[ImageApi]) -> None:
    api = own_api(api_key="key-of-this-test")
    with pytest.raises(ApiError, match="slower") as caught:
        ask(api, make_job(api), httpx.Response(429, json={"message": "slower, key-of-this-test"}))
    assert caught.value.error_class is ErrorClass.RATE_LIMITED
    assert "key-of-this-test" not in caught.value.message


@pytest.mark.parametrize(
    "body", [b"{}", b"[]", b'{"picture": 5}', b'{"picture": ""}', b'{"picture": "\xc3"}']
)
def test_hostile_answers_end_as_errors_of_the_api(own_api: type[ImageApi], body: bytes) -> None:
    api = own_api(api_key="key-of-this-test")
    try:
        content, _, _ = ask(api, make_job(api), httpx.Response(200, content=body))
    except ApiError as error:
        assert error.error_class in {ErrorClass.SERVER_ERROR, ErrorClass.INVALID_IMAGE}  # noqa: PT017
    else:
        assert content == b""


def planned(api: ImageApi, path: Path, picture: PictureSettings, **columns: Any) -> tuple[list[Job], int]:
    pq.write_table(pa.table(columns), path)
    planner = Planner(api, picture)
    batches = list(planner.plan(open_catalog(CatalogSettings(path=str(path)))))
    return [job for _, _, jobs in batches for job in jobs], planner.counts.negative_prompts


def test_a_negative_prompt_enters_the_key_where_the_api_uses_it(
    own_api: type[ImageApi], tmp_path: Path
) -> None:
    rows = {"prompt": ["a fox"] * 3, "negative_prompt": ["people", "dogs", None]}
    picture = PictureSettings(width=512, height=512)
    jobs, unused = planned(own_api(api_key="k"), tmp_path / "catalog.parquet", picture, **rows)
    assert (len(jobs), unused) == (3, 0)
    jobs, unused = planned(Together(api_key="k"), tmp_path / "catalog.parquet", picture, **rows)
    assert (len(jobs), unused) == (1, 2)


def test_a_format_that_the_api_does_not_offer_is_refused(own_api: type[ImageApi]) -> None:
    with pytest.raises(InputError, match=r"^The provider own does not make webp images. Choose png\.$"):
        Planner(own_api(api_key="k"), PictureSettings(format="webp"))


def test_the_same_catalog_has_the_same_keys(own_api: type[ImageApi], tmp_path: Path) -> None:
    prompts = [f"fox {random.Random(number).random()}" for number in range(20)]
    runs = [
        planned(own_api(api_key="k"), tmp_path / "c.parquet", PictureSettings(), prompt=prompts)[0]
        for _ in range(2)
    ]
    assert [job.key for job in runs[0]] == [job.key for job in runs[1]]
