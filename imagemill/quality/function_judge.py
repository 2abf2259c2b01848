"""A Python function of the user's as the judge: called in a thread, with several pictures at a time."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import sys
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from itertools import islice
from pathlib import Path

import anyio

from imagemill.errors import InputError
from imagemill.quality.judge import Answer, Candidate, Judge, OpinionError, failure_of, opinion_of

Function = Callable[[list[Candidate]], object]

_MOST_HANGS = 3
"""After so many calls in a row that did not return in time, it is asked no more: each keeps a thread."""


def load_function(name: str) -> Function:
    """The function ``module:function``; modules in the working directory are found after all installed ones.

    Raises:
        InputError: there is no such function.
    """
    module, _, attribute = name.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    absent = object()
    try:
        function = getattr(importlib.import_module(module), attribute, absent)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit too: a script without a guard ends with it
        reason = failure_of(error)
        raise InputError(f"--judge {name}: the module {module!r} cannot be imported ({reason}).") from error
    if function is absent:
        raise InputError(f"--judge {name}: the module {module!r} has no {attribute!r}.")
    if not callable(function) or inspect.iscoroutinefunction(function):
        raise InputError(f"--judge {name} is not a plain function.")
    return function


class FunctionJudge(Judge):
    """Calls ``function`` with up to ``batch`` pictures at once, one call at a time.

    While a call is on its way the next pictures gather. A call that takes longer than ``timeout_s`` is given
    up: a thread cannot be stopped, so it is left behind.
    """

    reads_rows = True

    def __init__(self, function: Function, *, batch: int, timeout_s: float) -> None:
        self._function = function
        self._batch = batch
        self._timeout_s = timeout_s
        self._turn = anyio.Lock()
        self._waiting: deque[_Case] = deque()
        self._hangs = 0

    async def ask(self, candidate: Candidate) -> Answer:
        case = _Case(candidate)
        self._waiting.append(case)
        try:
            async with self._turn:
                while case.answer is None:
                    await self._judge_next()
        finally:
            if case in self._waiting:  # cancelled
                self._waiting.remove(case)
        return case.answer

    async def _judge_next(self) -> None:
        cases = [self._waiting.popleft() for _ in range(min(self._batch, len(self._waiting)))]
        try:
            answers = await self._called([case.candidate for case in cases])
        except BaseException:
            self._waiting.extendleft(reversed(cases))
            raise
        for case, answer in zip(cases, answers, strict=True):
            case.answer = answer

    async def _called(self, candidates: list[Candidate]) -> list[Answer]:
        if self._hangs >= _MOST_HANGS:
            return [Answer(failure="the judge hangs, and is asked no more")] * len(candidates)
        try:
            with anyio.fail_after(self._timeout_s):
                answers = await asyncio.wrap_future(_in_thread(self._function, candidates))
        except TimeoutError:
            self._hangs += 1
            return [Answer(failure=f"no answer within {self._timeout_s:g} s")] * len(candidates)
        self._hangs = 0
        return answers


class _Case:
    """A picture that waits for its answer."""

    def __init__(self, candidate: Candidate) -> None:
        self.candidate = candidate
        self.answer: Answer | None = None


def _in_thread(function: Function, candidates: list[Candidate]) -> Future[list[Answer]]:
    """Call the function in a thread that does not keep the process from ending."""
    called: Future[list[Answer]] = Future()
    called.set_running_or_notify_cancel()

    def call() -> None:
        try:
            called.set_result(_answers(function, candidates))
        except BaseException as error:  # noqa: BLE001 - the function may raise anything, SystemExit too
            called.set_result([Answer(failure=failure_of(error))] * len(candidates))

    threading.Thread(target=call, name="imagemill-judge", daemon=True).start()
    return called


def _answers(function: Function, candidates: list[Candidate]) -> list[Answer]:
    given = list(candidates)  # the function's own: it may empty it
    found = list(islice(function(given), len(candidates) + 1))  # type: ignore[call-overload]
    if len(found) != len(candidates):
        failure = f"it did not return one answer per picture, of which it was given {len(candidates)}"
        return [Answer(failure=failure)] * len(candidates)
    return [_answer(opinion) for opinion in found]


def _answer(given: object) -> Answer:
    """An answer from a score, or a score and words."""
    score, words = given if isinstance(given, tuple) and len(given) == 2 else (given, "")
    try:
        return Answer(opinion_of(score, words))
    except OpinionError as error:
        return Answer(failure=str(error))
