"""Runware: synchronous, with a task id that the client chooses before it sends.

- Authorization: ``Bearer KEY``, from RUNWARE_API_KEY. Requests and answers are lists of tasks.
- ``taskUUID`` is derived from run, picture and attempt, and stored before the request leaves. An answer that
  is lost is asked for by ``getTaskDetails``; a task that is sent twice is refused with ``conflictTaskUUID``.
  So no image is bought twice, on a synchronous API.
- Errors: ``{"errors": [{code, message, parameter, taskUUID}]}``. 429 and 503 mean later, 402 no credit.
- The charge is in each answer, in USD (``includeCost``).
- Images come by links, from hosts below runware.ai.

From Runware's documentation and its Python client 0.5.24, 2026-11-25. Not confirmed against the live service:
how long past tasks are kept, what is said of a task that is not known, and the words of a moderated prompt.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from functools import partial
from hashlib import blake2b
from typing import Any, ClassVar

import anyio
import httpx
import orjson
from pydantic import HttpUrl, PrivateAttr

from imagemill.blocks.apis.base import ImageApi
from imagemill.blocks.apis.error_codes import REQUEST_GONE
from imagemill.blocks.apis.exchange import (
    amount_of,
    fetch,
    not_taken,
    objects_at,
    parsed,
    text_at,
    unexpected_answer,
)
from imagemill.blocks.apis.generated_image import PAID, Accepted, GeneratedImage, ImageSource
from imagemill.errors import ApiError, ErrorClass
from imagemill.jobs import Job

_ASK_AGAIN_S = 1.0
"""Between two questions about a task that is being worked on, in seconds."""

_UNCLEAR = frozenset({ErrorClass.TIMEOUT, ErrorClass.SERVER_ERROR})
"""After such an error the task may be done all the same: it is asked about before another is sent."""


class Runware(ImageApi):
    """An account at Runware: any of its models, and no answer is ever lost.

    Example:
        ```python
        from imagemill.blocks.apis import Runware

        Runware(api_key="...").save("runware")
        api = Runware.load("BLOCK_NAME")
        ```
    """

    _block_type_name = "Image API: Runware"
    _block_type_slug = "imagemill-runware"
    _description = "Images from Runware: FLUX.1 [schnell], or any other model there."
    _logo_url = HttpUrl("https://github.com/Runware.png")
    _documentation_url = HttpUrl("https://runware.ai/docs/image-inference/api-reference")

    provider: ClassVar[str] = "runware"
    key_variable: ClassVar[str] = "RUNWARE_API_KEY"
    default_base_url: ClassVar[str] = "https://api.runware.ai"
    default_model: ClassVar[str] = "runware:100@1"
    formats: ClassVar[frozenset[str]] = frozenset({"png", "jpeg", "webp"})
    vendor_image_hosts: ClassVar[tuple[str, ...]] = ("runware.ai",)
    names_errors: ClassVar[bool] = True

    _run_id: str = PrivateAttr(default_factory=lambda: uuid.uuid4().hex)
    _refused: dict[str, int] = PrivateAttr(default_factory=dict)
    """By key, how many attempts Runware did not take, or never got: it knows no task of theirs."""

    def begin(self, run_id: str) -> None:
        self._run_id = run_id

    def endpoint(self, job: Job) -> str:
        del job
        return self.address("")

    def task_of(self, job: Job) -> str:
        """The id of the job's next task: the same on every machine that works on the run.

        An attempt that Runware did not take leaves its id to the next one: a machine that knows nothing of it
        must arrive at the id of the task that was taken, and a lost machine's task may have the same. Nor
        does it matter how many attempts asked about the task before, which has failed.
        """
        number = job.attempts - self._refused.get(job.key, 0)
        if job.request_id is not None:
            before = job.request_id.removeprefix(PAID)
            numbers = range(1, number + 1)
            number = next((n + 1 for n in numbers if self._task(job.key, n) == before), number)
        return self._task(job.key, number)

    def _task(self, key: str, number: int) -> str:
        seed = f"{self._run_id}|{key}|{self.model}|{number}".encode()  # one account may make several models
        # Runware asks for version 4, which any 122 bits can be.
        return str(uuid.UUID(bytes=blake2b(seed, digest_size=16).digest(), version=4))

    def was_refused(self, job: Job, times: int) -> None:
        self._refused[job.key] = times

    def was_refused_further(self, job: Job, times: int) -> None:
        self._refused[job.key] = self._refused.get(job.key, 0) + times

    def name_of(self, job: Job) -> str | None:
        return self.task_of(job)

    async def knows(self, http: httpx.AsyncClient, name: str) -> bool:
        return bool(await self._details(http, name))

    async def has_failed(self, http: httpx.AsyncClient, name: str) -> bool:
        try:
            await self._past(http, name)
        except ApiError as error:
            if error.keep_request:
                raise
            return True
        return False

    def body(self, job: Job) -> dict[str, Any]:
        return {
            "taskType": "imageInference",
            "taskUUID": (job.request_id or self.task_of(job)).removeprefix(PAID),
            "model": job.model,
            **self.fields(job),
            "numberResults": 1,
            "outputType": "URL",
            "includeCost": True,
            "deliveryMethod": "sync",
        }

    def payload(self, job: Job) -> object:
        return [self.body(job)]

    async def generate(self, http: httpx.AsyncClient, job: Job, accepted: Accepted) -> GeneratedImage:
        """Make one image; ask for it first where the task may have been sent before."""
        task = in_doubt = job.request_id and job.request_id.removeprefix(PAID)
        answer = None
        async with self.attempt(keep_request=True):
            if task is not None:
                try:
                    answer = await self._past(http, task)
                except ApiError as error:
                    if error.keep_request:
                        raise
                    task = None  # it failed, and nothing was charged: this attempt is a task of its own
            if task is None:
                task = self.task_of(job)
                await accepted(task)
            elif answer is None and self.is_paid(job.request_id):
                # Sent again it would be charged again: a new one is booked by itself.
                message = "Runware does not know the task any more"
                raise ApiError(ErrorClass.TIMEOUT, message, code=REQUEST_GONE)
            if answer is None:
                self._known_here[task] = anyio.current_time()
                answer = await self._new(http, job, task, in_doubt=task == in_doubt)
            self._note_charge(job, self.told_usd({}, answer, job))
            source = self.source_in(answer)
            if source is None:
                unclear = unexpected_answer(answer)
                unclear.keep_request = True  # it may be charged, and can be asked about
                raise unclear
            async with self._fetching(job, task, accepted):
                content = await self._perhaps_late(task, partial(self.content, http, source))
        charged = self.charge(job)
        return GeneratedImage(content, charged.usd, request_id=task, cost_source=charged.source)

    async def post(self, http: httpx.AsyncClient, job: Job) -> dict[str, Any]:
        answer = await super().post(http, job)
        self._check(answer)
        return answer

    def _check(self, answer: dict[str, Any]) -> None:
        """See that the task did not fail.

        Raises:
            ApiError: it did.
        """
        if errors := objects_at(answer, "errors"):
            # The status is not kept with a task: an error that names a parameter is about the request.
            raise self.error_of(400 if errors[0].get("parameter") else 500, {}, orjson.dumps(answer))

    def read(self, answer: dict[str, Any]) -> ImageSource | None:
        self._check(answer)
        for name in ("imageURL", "imageDataURI", "imageBase64Data"):
            if found := text_at(answer, "data", 0, name):
                return ImageSource(found, flagged=answer["data"][0].get("NSFWContent") is True)
        return None

    def told_usd(self, headers: Mapping[str, str], answer: Mapping[str, Any], job: Job) -> float | None:
        """``cost`` of the task, in USD."""
        del headers, job
        items = objects_at(dict(answer), "data")
        return amount_of(items[0].get("cost")) if items else None

    async def look_up(self, http: httpx.AsyncClient) -> str:
        """Ask about a task that is nobody's: the key is looked at first."""
        asked = [{"taskType": "getTaskDetails", "taskUUID": str(uuid.uuid4())}]
        try:
            await self.question(http, self.address(""), json=asked)
        except ApiError as error:
            if error.error_class is not ErrorClass.BAD_REQUEST or not error.code.startswith("task"):
                raise
        return "the key is accepted"

    async def _new(self, http: httpx.AsyncClient, job: Job, task: str, *, in_doubt: bool) -> dict[str, Any]:
        """The answer to a task that is sent now; to the one before where Runware had it already.

        A refusal of one that is ``in_doubt`` does not say that the one before is not being worked on. Later
        names do not count it: nor does the log, from which another machine derives them.
        """
        try:
            async with self.attempt():
                return await self.post(http, job)
        except ApiError as error:
            if error.code != "conflictTaskUUID":
                error.keep_request = in_doubt if not_taken(error) else error.error_class in _UNCLEAR
                if not_taken(error) and not in_doubt:
                    self.was_refused_further(job, 1)
                raise
        while (answer := await self._past(http, task)) is None:  # noqa: ASYNC110 - at the API, not here
            await anyio.sleep(_ASK_AGAIN_S)
        return answer

    async def _past(self, http: httpx.AsyncClient, task: str) -> dict[str, Any] | None:
        """The answer that a past task had; None where Runware does not know the task, or has none yet.

        Raises:
            ApiError: it failed, so that a new one may be sent; or could not be asked, then it is kept.
        """
        try:
            found = await self._details(http, task)
        except ApiError as error:
            error.keep_request = True
            raise
        response = found[0].get("response") if found else None
        if not isinstance(response, dict) or not (response.get("data") or response.get("errors")):
            return None
        self._check(response)
        return response

    async def _details(self, http: httpx.AsyncClient, task: str) -> list[dict[str, Any]]:
        """What Runware has of a past task; nothing where it knows no such task.

        Raises:
            ApiError, httpx.HTTPError: it could not be asked.
        """
        question = [{"taskType": "getTaskDetails", "taskUUID": task}]
        try:
            status, headers, body = await fetch(
                http, "POST", self.address(""), headers=self.headers, json=question
            )
            if status not in self.success:
                raise self.error_of(status, headers, body)
            return objects_at(parsed(body), "data")
        except ApiError as error:
            if error.error_class is ErrorClass.BAD_REQUEST:
                return []
            raise
