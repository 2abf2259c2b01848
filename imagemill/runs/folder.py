"""A run's folder on this machine, and the record with which another machine can resume the run."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
from pydantic import TypeAdapter, ValidationError

from imagemill.catalog.counts import PlanCounts
from imagemill.durable import make_durable, write_whole
from imagemill.engine.receipt import RECEIPT_SUFFIX
from imagemill.errors import InputError, StoreUnavailableError
from imagemill.media_types import JSON, PARQUET
from imagemill.settings import RunSettings, input_error

if TYPE_CHECKING:  # a listing of the runs on this machine needs no bucket
    from imagemill.bucket.image_bucket import ImageBucket
    from imagemill.runs.summary import RunSummary


_COUNTS = TypeAdapter(PlanCounts)
_DISK_TROUBLE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS})


def home() -> Path:
    """The folder of all runs' folders: IMAGEMILL_HOME, or ~/.imagemill.

    Raises:
        InputError: it is on S3, or a name in it is not UTF-8, which libraries cannot open.
    """
    given = os.environ.get("IMAGEMILL_HOME", "~/.imagemill")
    path = Path(given).expanduser()
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise InputError(f"The folder {str(path)!r} is not UTF-8: set IMAGEMILL_HOME to another.") from error
    if given.lower().startswith("s3:/"):
        raise InputError(f"IMAGEMILL_HOME {given!r} is on S3: set it to a folder on this machine.")
    return path


class RunFolder:
    """The local files of a run: job store, plan, log, record, and images not uploaded yet."""

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id
        self.path = home() / "runs" / run_id
        self.plan = self.path / "plan.parquet"
        self.rejected = self.path / "rejected.parquet"
        self.log = self.path / "log.jsonl"
        self.parts = self.path / "parts.json"
        self._fetched = self.path / "fetched"
        self._overtaken = self.path / "overtaken"
        self.model = self.path / "model.json"
        self.record = self.path / "run.json"
        self.summary = self.path / "summary.json"
        self.unsaved = self.path / "unsaved"

    @property
    def unsaved_images(self) -> list[Path]:
        """The whole images that are paid for and not in the bucket yet, without their receipts."""
        return [file for file in self.unsaved.glob("[!.]*.*") if file.suffix != RECEIPT_SUFFIX]

    def model_of(self, route: str | None) -> Path:
        """The file with what the vendor published of the model of a route, or of a run over one."""
        return self.path / f"model-{route}.json" if route else self.model

    def create(self) -> None:
        """Create the folder.

        Raises:
            InputError: it cannot be created.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"Cannot create the run's folder {self.path} ({error.strerror}). Set IMAGEMILL_HOME to a"
                " folder that can be written."
            ) from error

    def trouble_named(self) -> AbstractContextManager[None]:
        """Raise what a full or broken disk brings in the block as an error that a run can be resumed after.

        Raises:
            StoreUnavailableError: the disk is full, broken or only to be read.
        """
        return self._troubled(StoreUnavailableError, "")

    def writable(self) -> AbstractContextManager[None]:
        """The same for a block outside of a run, which nothing is to be resumed after.

        Raises:
            InputError: the disk is full, broken or only to be read; says what to do.
        """
        return self._troubled(
            InputError, " Make room there, or set IMAGEMILL_HOME to a folder that can be written."
        )

    @contextmanager
    def _troubled(self, kind: type[InputError | StoreUnavailableError], what_to_do: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in _DISK_TROUBLE:
                raise
            raise kind(f"{self.trouble(error)}{what_to_do}") from error

    def trouble(self, error: OSError) -> str:
        """The sentence for a disk that does not take what is written to the folder."""
        return f"Cannot write to the run's folder {self.path} ({error.strerror or type(error).__name__})."

    def write_record(
        self,
        settings: RunSettings,
        counts: PlanCounts,
        catalog_digest: str,
        picture_model: str,
        flow_run_id: str | None = None,
        *,
        after: str = "",
    ) -> None:
        """Store the settings, the plan's counts, and which catalog, model and flow run it is of.

        Of ``picture_model``, which has a block's further fields, only a digest is stored.
        The run counts as planned ``after`` the manifest's last one, whatever this machine's clock says.
        """
        planned_at = datetime.now(UTC)
        with suppress(ValueError, TypeError, OverflowError):  # "", or nothing of ours
            planned_at = max(planned_at, datetime.fromisoformat(after) + timedelta(milliseconds=1))
        document = {
            "settings": settings.model_dump(mode="json"),
            "plan": asdict(counts),
            "catalog_digest": catalog_digest,
            "picture_model_digest": _digest(picture_model),
            "planned_at": planned_at.isoformat(timespec="milliseconds"),
            "flow_run_id": flow_run_id,
        }
        self._write_record(orjson.dumps(document, option=orjson.OPT_INDENT_2))

    def _write_record(self, record: bytes) -> None:
        """Store the record once the plan that it stands for is safe on the disk."""
        for file in (self.plan, self.rejected):
            if file.exists():
                make_durable(file)
        write_whole(self.record, record)

    def read_record(self) -> tuple[RunSettings, PlanCounts] | None:
        """The run's settings and the counts of its plan; None if it has not been planned.

        Raises:
            InputError: the record is damaged.
        """
        try:
            record = self.record.read_bytes()
        except FileNotFoundError:
            return None
        return self._parsed(record, str(self.record), "Move its folder aside and start the run again")

    def _parsed(self, record: bytes, place: str, remedy: str) -> tuple[RunSettings, PlanCounts]:
        try:
            document: dict[str, Any] = orjson.loads(record)
            try:
                settings = RunSettings(**document["settings"])
            except ValidationError as error:
                raise input_error(error) from error
            return settings, _COUNTS.validate_python(document["plan"])
        except (orjson.JSONDecodeError, KeyError, TypeError, ValidationError) as error:
            raise InputError(
                f"The record {place} of run {self.run_id!r} is damaged. {remedy}: images in the bucket are"
                " found there."
            ) from error

    def read_catalog_digest(self) -> str | None:
        """Which catalog was planned; None in the record of an earlier version."""
        digest: str | None = orjson.loads(self.record.read_bytes()).get("catalog_digest")
        return digest

    def is_of(self, picture_model: str) -> bool:
        """Whether the plan is of this model, as pictures' keys have it; so it is in an older record."""
        digest = orjson.loads(self.record.read_bytes()).get("picture_model_digest")
        return digest in {None, _digest(picture_model)}

    def read_planned_at(self) -> str:
        """When the run was planned, in ISO format; "" in the record of an earlier version."""
        return str(orjson.loads(self.record.read_bytes()).get("planned_at") or "")

    def read_flow_run_id(self) -> str | None:
        """The Prefect flow run that planned the run or resumed it last; None where that is not known."""
        flow_run_id: str | None = orjson.loads(self.record.read_bytes()).get("flow_run_id")
        return flow_run_id

    def note_flow_run(self, flow_run_id: str | None, bucket: ImageBucket) -> None:
        """Record that this flow run resumes the run; a retry of it may be on another machine.

        The bucket gets the record only beside the plan, which a killed process may not have uploaded.
        """
        document = orjson.loads(self.record.read_bytes()) | {"flow_run_id": flow_run_id}
        self._write_record(orjson.dumps(document, option=orjson.OPT_INDENT_2))
        name = f"runs/{self.run_id}/{self.record.name}"
        if bucket.read(name) is None:
            self.publish_plan(bucket)
        else:
            bucket.upload(self.record, name, JSON)

    def write_summary(self, summary: RunSummary) -> None:
        """Store the summary."""
        write_whole(self.summary, summary.model_dump_json(indent=2).encode())

    def forget_summary(self) -> None:
        """Remove the summary: the run continues."""
        self.summary.unlink(missing_ok=True)

    def fetch(self, bucket: ImageBucket, accept: Callable[[RunSettings], None] | None = None) -> None:
        """Fetch a run that another machine planned from the bucket, if it is there.

        Nothing is fetched where ``accept`` raises for the settings in its record.

        Raises:
            InputError: the record is damaged.
        """
        if self.record.exists():
            return
        name = f"runs/{self.run_id}/run.json"
        record = bucket.read(name)
        if record is None:
            return
        recorded, _ = self._parsed(record, bucket.uri_of(name), "Start the run under another run id")
        if accept is not None:
            accept(recorded)
        self.create()
        for file in (self.log, self.parts):  # of a run of this id that was never planned
            file.unlink(missing_ok=True)
        for file in (self.plan, self.rejected, self.log):
            bucket.download(f"runs/{self.run_id}/{file.name}", file)
        self.fetch_models(
            bucket, [route["name"] for route in orjson.loads(record)["settings"].get("routes", [])]
        )
        self._fetched.touch()
        self._write_record(record)

    @property
    def is_overtaken(self) -> bool:
        """Whether the folder's log was replaced, and a job store on this machine is older than that."""
        return self._overtaken.exists()

    def set_overtaken(self, overtaken: bool) -> None:  # noqa: FBT001
        """Note that the log is about to be replaced, or that the job store has been made anew."""
        if overtaken:
            self._overtaken.touch()
        else:
            self._overtaken.unlink(missing_ok=True)

    @property
    def is_fetched(self) -> bool:
        """Whether another machine made the record: who may write to the bucket may have changed it."""
        return self._fetched.exists()

    def fetch_models(self, bucket: ImageBucket, routes: Sequence[str | None]) -> None:
        """Fetch what the run's leader learned of its models: a worker asks nobody whose answer may differ.

        ``routes`` are the names of the routes, none in a run over one.
        """
        for file in [self.model_of(route) for route in routes or [None]]:
            if not file.exists():
                bucket.download(f"runs/{self.run_id}/{file.name}", file)

    def publish_plan(self, bucket: ImageBucket) -> None:
        """Upload plan, rejected rows, what the vendor published of the model, and the record, that last."""
        for file, media_type in (
            (self.plan, PARQUET),
            (self.rejected, PARQUET),
            *[(file, JSON) for file in sorted(self.path.glob("model*.json"))],
            (self.record, JSON),
        ):
            bucket.upload(file, f"runs/{self.run_id}/{file.name}", media_type)


def _digest(text: str) -> str:
    return blake2b(text.encode(), digest_size=16).hexdigest()
