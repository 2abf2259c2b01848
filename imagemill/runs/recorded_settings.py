"""The settings that a run began with, for a resume or a retry of its failed jobs."""

from __future__ import annotations

from collections.abc import Callable, Collection
from urllib.parse import urlsplit

from imagemill.blocks.loading import image_api
from imagemill.bucket.access import open_bucket
from imagemill.errors import InputError
from imagemill.runs.folder import RunFolder
from imagemill.settings import RUN_ID, ApiSettings, OutputSettings, RunSettings


def recorded_settings(
    run_id: str, output: OutputSettings | None, accept: Callable[[RunSettings], None] | None = None
) -> RunSettings:
    """The settings that a run began with, from its record on this machine or in the bucket, to read it.

    ``accept`` may raise for those in the bucket, before anything of the run is fetched.

    Raises:
        InputError: there is no such run, or the disk does not take its record.
    """
    if not RUN_ID.fullmatch(run_id):  # it becomes a part of paths
        raise InputError(f"There is no run {run_id!r}: an id has letters, digits, '.', '_' and '-'.")
    folder = RunFolder(run_id)
    if output is not None:
        bucket = open_bucket(output)
        with folder.writable():
            folder.fetch(bucket, accept)
        bucket.close()
    record = folder.read_record()
    if record is None:
        here = f"There is no run {run_id!r} on this machine (looked in {folder.path})"
        if output is not None:
            raise InputError(
                f"{here}, nor in {output.uri}, which gets the record of a run once it is planned."
            )
        raise InputError(f"{here}. If it ran on another machine, set its output, which has its records.")
    settings = record[0]
    if output is not None:  # where the bucket is and who may use it is this machine's to say
        place = {"s3_endpoint_url": output.s3_endpoint_url, "s3_bucket_block": output.s3_bucket_block}
        settings = settings.model_copy(update={"output": settings.output.model_copy(update=place)})
    return settings


def settings_to_go_on(
    run_id: str,
    output: OutputSettings | None,
    *,
    base_url: str | None = None,
    judge: str | None = None,
    named: Collection[str] = (),
) -> RunSettings:
    """The same, to go on with the run: ``base_url`` and ``judge``, if given, replace those in the record.

    The caller replaces the ``named`` settings of how it is executed.

    Raises:
        InputError: there is no such run; or another machine recorded an address or a judge that nobody has
            named here.
    """

    def accept(settings: RunSettings) -> None:
        _refuse_unnamed_address(settings, base_url)
        _refuse_unnamed_judge(settings, judge)
        _refuse_unnamed_servers(settings, named)

    settings = recorded_settings(run_id, output, accept)
    if RunFolder(run_id).is_fetched:
        accept(settings)
    if base_url is not None:
        settings = settings.model_copy(update={"api": settings.api.model_copy(update={"base_url": base_url})})
    if judge is not None:
        settings = settings.model_copy(
            update={"quality": settings.quality.model_copy(update={"judge": judge})}
        )
    return settings


def _refuse_unnamed_judge(settings: RunSettings, judge: str | None) -> None:
    """Check that a record from the bucket hands no picture to a judge that nobody has named here.

    Raises:
        InputError: it would; names the judge and how to allow it.
    """
    if settings.quality.judge is not None and judge is None:
        raise InputError(
            f"The record of run {settings.run_id!r} in the bucket has its pictures judged by"
            f" {settings.quality.judge!r}. If that is meant, name the judge:"
            f" --judge {settings.quality.judge}"
        )


def _refuse_unnamed_servers(settings: RunSettings, named: Collection[str]) -> None:
    """Check that a record from the bucket hands no server the store's password, or the jobs with their keys.

    Raises:
        InputError: it would; names the server and how to allow it.
    """
    execution = settings.execution
    for name, value in (("store", execution.store), ("scheduler", execution.scheduler)):
        is_ours = value in {None, "memory", "sqlite"} or str(value).startswith("block:")
        if not is_ours and name not in named:
            raise InputError(
                f"The record of run {settings.run_id!r} in the bucket names the {name} {value!r}. If that is"
                f" meant, name it here: --{name} {value}"
            )


def refuse_unnamed_address(settings: RunSettings, base_url: str | None) -> None:
    """Check that a record from the bucket sends no key to a host that nobody has named here.

    Whoever may write to the bucket could have put another address there.

    Raises:
        InputError: it would; names the address and how to allow it.
    """
    if RunFolder(settings.run_id).is_fetched:
        _refuse_unnamed_address(settings, base_url)


def _refuse_unnamed_address(settings: RunSettings, base_url: str | None) -> None:
    apis: list[ApiSettings] = [*settings.routes]
    if not apis and base_url is None:
        apis = [settings.api]
    for api in apis:
        own = image_api(api.model_copy(update={"base_url": None}), needs_key=False).base_url
        if api.base_url is not None and urlsplit(api.base_url)[:2] != urlsplit(own)[:2]:
            host, own_host = (urlsplit(url).netloc for url in (api.base_url, own))
            how = f"address: --base-url {api.base_url}"
            if settings.routes:
                how = f"routes: imagemill run … --route … --run-id {settings.run_id}"
            raise InputError(
                f"The record of run {settings.run_id!r} in the bucket sends your {api.provider} key to"
                f" {host!r}, not to {own_host!r}. If that is meant, name the {how}"
            )
