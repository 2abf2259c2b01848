"""Tells a run that is set up wrongly from rows that are bad: a pure object fed with what requests brought.

A wrong model name, a size that the model does not make or an image link that is not followed fails each row
in the same way, and may buy each image before it does. Ten such rows and not one image (one row, where the
API knows no such model), or too large a share of the latest requests, is a fault of the setup: the run stops,
resumably, instead of failing row after row.
"""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Callable
from typing import NamedTuple

import anyio

from imagemill.blocks.apis.error_codes import UNKNOWN_ANSWER
from imagemill.errors import ApiError, ErrorClass
from imagemill.jobs import Job
from imagemill.quality.inspection import SUSPECT

ALIKE = 10
"""Rows that failed alike, with no image yet, that are a fault of the setup."""
ANYHOW = 30
"""The same for rows that failed in different words."""
WINDOW = 50
"""Requests over which the share counts once there was an image."""

_VARYING = re.compile(r"'[^']*'|\"[^\"]*\"|`[^`]*`|[0-9]+")
_OF_THE_IMAGE_LINK = frozenset({"image_link_expired", "answer_too_large"})

_BLANK = "blank_image"
"""A picture of one colour: what an API answers to a prompt that it flags, and a broken server to all."""

_OF_THE_ROW = frozenset({"prompt_too_long", "size"})
"""What an API's own module refuses of a row before anything is sent."""

_UNKNOWN_MODEL = frozenset({"http_404", "invalidModel", "model_not_found", "not_found"})
"""An API that knows no such model, or has nothing at this address, would say so of every row."""

_WRONG_ADDRESS = "Check that --base-url leads to an API that speaks as this provider does."
_ADVICE = {
    "redirected": "Set --base-url to the address that it redirects to.",
    "image_host_refused": "",
    "wrong_size": "Ask for a size that the model makes, by --width and --height.",
    "http_404": f"Check --model. {_WRONG_ADDRESS}",
    "invalidModel": "Check --model.",
    "model_not_found": "Check --model.",
    _BLANK: "Look at what the model makes of other prompts.",
    UNKNOWN_ANSWER: _WRONG_ADDRESS,
    "bad_base64": _WRONG_ADDRESS,
    "not_an_image": _WRONG_ADDRESS,
}
_USUAL_ADVICE = "Check --model, the size of the images and further fields of the request."


class _Failure(NamedTuple):
    likeness: tuple[str, str]
    job: Job
    error: ApiError


class SetupFault:
    """Watches for failures that are alike and that no row can help.

    Until there is an image, a first such failure holds the eleventh row back (:meth:`admit`) until those on
    their way have shown whether one brings an image: failures come sooner than images.

    Args:
        share: of the last 50 requests that ended, from 0 to 1, above which failures alike stop a run that had
            images; 1 turns the watch off.
        worked: whether the run had images before.
    """

    def __init__(self, share: float, *, worked: bool = False) -> None:
        self._share = share
        self._worked = worked
        self._failures: list[_Failure] = []
        self._latest: deque[_Failure | None] = deque(maxlen=WINDOW)
        self._in_flight: set[int] = set()
        self._changed = anyio.Event()
        self.on_change: Callable[[], None] | None = None
        """Called when a job may perhaps be sent, for who does not wait in :meth:`admit`."""

    async def admit(self, job: Job, stopping: anyio.Event) -> None:
        """Wait while the requests on their way must show first whether the run is set up rightly."""
        while self.is_in_doubt and not stopping.is_set():
            await self._changed.wait()
        self._in_flight.add(job.number)

    def succeeded(self, job: Job) -> None:
        """A request brought an image that can be used."""
        self._worked = True
        self._failures.clear()
        self._latest.append(None)
        self._ended(job)

    def failed(self, job: Job, error: ApiError) -> str | None:
        """A request failed; the sentence that says why the run must stop, None where it goes on."""
        self._ended(job)
        if self._share >= 1:
            return None
        if is_suspect(error):
            failure = _Failure(_likeness(error), job, error)
            self._latest.append(failure)
            if self._worked:
                return self._too_many_lately()
            self._failures.append(failure)
        return None if self._worked or self._in_flight else self._none_but_failures()

    def leave(self, job: Job) -> None:
        """A request that was admitted was not sent after all."""
        self._ended(job)

    def stop(self) -> None:
        """Let those who wait see that the run is stopping."""
        self._notify()

    def suspects(self) -> list[Job]:
        """The jobs that failed so: a run that is set up rightly should try them again."""
        failures = [*self._failures, *(failure for failure in self._latest if failure)]
        return list({failure.job.number: failure.job for failure in failures}.values())

    @property
    def is_in_doubt(self) -> bool:
        """Whether the requests on their way must show first whether the run is set up rightly."""
        return self._is_undecided(self._most_alike(), self._enough) or self._is_undecided(
            self._rows(), ANYHOW
        )

    @property
    def _enough(self) -> int:
        """How many rows that failed alike are a fault of the setup."""
        return 1 if all(failure.error.code in _UNKNOWN_MODEL for failure in self._failures) else ALIKE

    def _is_undecided(self, failed: int, enough: int) -> bool:
        """Whether those on their way decide if as many rows fail as are a fault of the setup."""
        in_flight = len(self._in_flight)
        return 0 < failed < enough <= failed + in_flight or (failed >= enough and in_flight > 0)

    def _ended(self, job: Job) -> None:
        self._in_flight.discard(job.number)
        self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()
        if self.on_change is not None:
            self.on_change()

    def _most_alike(self) -> int:
        rows: dict[tuple[str, str], set[int]] = {}
        for failure in self._failures:
            rows.setdefault(failure.likeness, set()).add(failure.job.number)
        return max(map(len, rows.values()), default=0)

    def _rows(self) -> int:
        return len({failure.job.number for failure in self._failures})

    def _none_but_failures(self) -> str | None:
        alike, every = self._most_alike(), self._rows()
        if alike >= self._enough:
            how = f"The first {alike} rows failed in the same way" if alike > 1 else "The first row failed"
            return self._sentence(how, self._failures[-1].error)
        if every >= ANYHOW:
            return self._sentence(f"The first {every} rows failed, the latest so", self._failures[-1].error)
        return None

    def _too_many_lately(self) -> str | None:
        failures = [failure for failure in self._latest if failure]
        likeness, alike = Counter(failure.likeness for failure in failures).most_common(1)[0]
        if len(self._latest) < WINDOW or alike <= self._share * WINDOW:
            return None
        latest = next(failure for failure in reversed(failures) if failure.likeness == likeness)
        return self._sentence(f"{alike} of the last {WINDOW} requests failed in the same way", latest.error)

    @staticmethod
    def _sentence(how: str, error: ApiError) -> str:
        advice = _ADVICE.get(error.code, _USUAL_ADVICE)
        words = f"{how}, which no row can help: {error.message.rstrip('.')}. {advice}".rstrip()
        return f"{words} If it is the rows all the same, set --setup-fault-share 1."


def is_suspect(error: ApiError) -> bool:
    """Whether an error may be a fault of the setup."""
    if error.error_class is ErrorClass.INVALID_IMAGE:
        return error.code not in _OF_THE_IMAGE_LINK | {SUSPECT}
    if error.code in _OF_THE_ROW:
        return False
    return error.error_class is ErrorClass.BAD_REQUEST or error.code in {UNKNOWN_ANSWER, _BLANK}


def _likeness(error: ApiError) -> tuple[str, str]:
    """What failures alike share: the code, and for a refused request its words without what may vary."""
    words = error.message if error.error_class is ErrorClass.BAD_REQUEST else ""
    return error.code, _VARYING.sub("", words.lower())[:200]
