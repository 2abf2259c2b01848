"""What is tried before a run buys anything: key and model, bucket, job store, Prefect; one image where asked.

``imagemill check`` says each in a line. A run tries the account and the bucket before it buys anything.
"""

from __future__ import annotations

import tempfile
import time
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path

import anyio
import httpx
from pydantic import BaseModel, ConfigDict, Field

from imagemill.blocks.apis import ImageApi
from imagemill.blocks.apis.error_codes import NO_SUCH_MODEL
from imagemill.blocks.loading import image_api, job_store
from imagemill.bucket.access import open_bucket
from imagemill.bucket.probe import probe, probe_copies
from imagemill.catalog.makers import makers_of
from imagemill.engine.image_check import check_picture
from imagemill.engine.limits.pacer import Pacer
from imagemill.engine.route import PATIENCE_S
from imagemill.errors import ApiError, ErrorClass, InputError, StoreUnavailableError
from imagemill.formatting import money
from imagemill.jobs import CostSource, Job
from imagemill.quality.named_judge import named_judge
from imagemill.runs.accounts import named_routes
from imagemill.runs.environment import refuse_prefect, refuse_proxies
from imagemill.runs.folder import RunFolder
from imagemill.settings import (
    ApiSettings,
    ExecutionSettings,
    LimitSettings,
    OutputSettings,
    PictureSettings,
    QualitySettings,
    RouteSettings,
)
from imagemill.stores import open_store

_PROMPT = "A red bicycle leaning against a white wall, daylight"
_MENDS = {
    ErrorClass.UNAUTHORIZED: "set {} to a key of this account",
    ErrorClass.OUT_OF_BUDGET: "add credit at the vendor",
}


class Finding(BaseModel):
    """One thing that was tried. ``ok`` is None where it could not be told."""

    model_config = ConfigDict(frozen=True)

    what: str = Field(description="key, model, bucket, judge, store, prefect or image.")
    ok: bool | None
    words: str = Field(description="What was found, or what is wrong and how to mend it.")


def check_all(
    api: ApiSettings | list[RouteSettings],
    output: OutputSettings | None,
    execution: ExecutionSettings,
    picture: PictureSettings,
    quality: QualitySettings | None = None,
    *,
    image: bool,
) -> list[Finding]:
    """Try everything that a run of these settings needs; with ``image``, buy one."""
    findings = _api_findings(api, picture, image=image)
    if output is None:
        findings.append(Finding(what="bucket", ok=None, words="not tried: give --output s3://BUCKET/PREFIX"))
    else:
        findings.append(_tried("bucket", lambda: _bucket_words(output)))
    if quality is not None and quality.judge is not None:
        findings.append(_tried("judge", partial(_judge_words, quality)))
    findings.append(_tried("store", lambda: _store_words(execution)))
    findings.append(_tried("prefect", _prefect_words))
    return findings


def _tried(what: str, words: Callable[[], str]) -> Finding:
    try:
        return Finding(what=what, ok=True, words=words())
    except (InputError, StoreUnavailableError) as error:
        return Finding(what=what, ok=False, words=str(error))


def _api_findings(
    settings: ApiSettings | list[RouteSettings], picture: PictureSettings, *, image: bool
) -> list[Finding]:
    try:
        refuse_proxies()
        if not isinstance(settings, list):
            return _of_api(image_api(settings), picture, image=image)
        routes, apis = named_routes(settings)
        makers_of(routes, apis, mix=picture.mix_models)
    except InputError as error:
        return [Finding(what="key", ok=False, words=str(error))]
    return [
        Finding(what=found.what, ok=found.ok, words=f"{route.name}: {found.words}")
        for route, api in zip(routes, apis, strict=True)
        for found in _of_api(api, picture, image=image)
    ]


def _of_api(api: ImageApi, picture: PictureSettings, *, image: bool) -> list[Finding]:
    async def ask() -> list[Finding]:
        timeout = httpx.Timeout(api.request_timeout_s, connect=PATIENCE_S)
        async with httpx.AsyncClient(timeout=timeout) as http:
            found = await _account_findings(api, http)
            return [*found, await _bought(api, http, picture)] if image else found

    return anyio.run(ask)


async def _account_findings(api: ImageApi, http: httpx.AsyncClient) -> list[Finding]:
    key, model = f"{api.provider} at {api.base_url}", _model_finding(api)
    try:
        with anyio.fail_after(PATIENCE_S):
            words = await api.look_up(http)
    except ApiError as error:
        if mend := _MENDS.get(error.error_class):
            words = f"{key}: {error.message}: {mend.format(api.key_variable)}"
            return [Finding(what="key", ok=False, words=words), model]
        if error.code == NO_SUCH_MODEL:
            wrong = Finding(what="model", ok=False, words=api.no_such_model().message)
            return [Finding(what="key", ok=True, words=f"{key}: accepted"), wrong]
        words = f"{key}: it does not say ({error.message}); --image would tell"
        return [Finding(what="key", ok=None, words=words), model]
    except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
        words = api.clean(f"{key}: no answer ({type(error).__name__}): check --base-url and the network")
        return [Finding(what="key", ok=False, words=words), model]
    return [Finding(what="key", ok=True, words=f"{key}: {words}"), model]


def _model_finding(api: ImageApi) -> Finding:
    known = api.profile.origin != "assumed"
    price = " ".join(api.price_in_words.split())
    words = f"{api.model}: {price}" if known else f"{api.model}: {api.profile.note}"
    return Finding(what="model", ok=True if known else None, words=words)


async def _bought(api: ImageApi, http: httpx.AsyncClient, picture: PictureSettings) -> Finding:
    """One real image, for its price."""
    job = Job(
        number=0,
        id="check",
        key=uuid.uuid4().hex,
        prompt=_PROMPT,
        negative_prompt=None,
        width=picture.width,
        height=picture.height,
        seed=1,
        steps=picture.steps or api.profile.steps.default,
        model=api.model,
        format=picture.format,
    )
    if reason := api.refusal(job.width, job.height, job.steps):
        return Finding(what="image", ok=False, words=f"not asked for: {reason}")

    async def accepted(request_id: str, _charged_usd: float | None = None) -> None:
        job.request_id = request_id

    begun = time.monotonic()
    try:
        made = await api.generate(http, job, accepted)
        found = check_picture(made.content, job.width, job.height)
    except ApiError as error:
        return Finding(what="image", ok=False, words=f"{error.error_class}: {error.message}")
    seconds = time.monotonic() - begun
    cost = money(made.cost_usd) if made.cost_source is not CostSource.UNKNOWN else "an unknown price"
    words = (
        f"{found.width} x {found.height} {found.extension} in {seconds:.1f} s for {cost} ({made.cost_source})"
    )
    return Finding(what="image", ok=not made.flagged, words=f"{words}{', flagged' if made.flagged else ''}")


def _bucket_words(output: OutputSettings) -> str:
    bucket = open_bucket(output)
    try:
        probe(bucket)
        probe_copies(bucket)
    finally:
        bucket.close()
    return f"{bucket.uri}: written, replaced, read, copied and deleted"


def _judge_words(quality: QualitySettings) -> str:
    judge = named_judge(quality, LimitSettings(), Pacer(1))

    async def try_it() -> None:
        if judge is not None:
            async with judge:
                pass

    anyio.run(try_it)
    return f"{quality.judge}: {'answers' if quality.judge_is_model else 'imported'}"


def _store_words(settings: ExecutionSettings) -> str:
    named, password = job_store(settings)
    run_id = f"check-{uuid.uuid4().hex[:12]}"

    async def try_it(folder: Path) -> str:
        async with open_store(named, rows=1, run_id=run_id, folder=folder, password=password) as store:
            await store.totals()
        return "opened and closed"

    home = RunFolder(run_id).path.parent
    try:
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="check-", dir=home) as folder:
            words = anyio.run(try_it, Path(folder))
    except OSError as error:
        raise InputError(f"{home} cannot be written ({error.strerror}): set IMAGEMILL_HOME.") from error
    return f"{settings.store or 'memory or sqlite, by size'}: {words}"


def _prefect_words() -> str:
    url = refuse_prefect()
    return f"{url}: answers" if url else "no server is configured: each run starts one of its own"
