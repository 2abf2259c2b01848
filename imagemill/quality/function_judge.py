"""A Python function of the user's as the judge: called in a thread, with several pictures at a time."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from itertools import islice
from pathlib import Path

import anyio

from imagemill.errors import InputError, printable
from imagemill.formatting import cut
from imagemill.quality.judge import Answer, Candidate, Judge, OpinionError, opinion_of

Function = Callable[[Sequence[Candidate]], object]

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
    try:
        function = getattr(importlib.import_module(module), attribute)
    except AttributeError as error:
        raise InputError(f"--judge {name}: the module {module!r} has no {attribute!r}.") from error
    except Exception as error:
        reason = f"{type(error).__name__}: {cut(str(error), 200)}"
        raise InputError(f"--judge {name}: the module {module!r} cannot be imported ({reason}).") from error
    if not callable(function) or inspect.iscoroutinefunction(function):
        raise InputError(f"--judge {name} is not a plain function.")
    return function  # type: ignore[no-any-return]


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
            failure = f"{type(error).__name__}: {cut(printable(str(error)), 200)}"
            called.set_result([Answer(failure=failure)] * len(candidates))

    threading.Thread(target=call, name="imagemill-judge", daemon=True).start()
    return called


def _answers(function: Function, candidates: list[Candidate]) -> list[Answer]:
    found = list(islice(function(candidates), len(candidates) + 1))  # type: ignore[call-overload]
    if len(found) != len(candidates):
        raise OpinionError(f"it was given {len(candidates)} pictures and returned another number of answers")
    return [_answer(opinion) for opinion in found]


def _answer(given: object) -> Answer:
    """An answer from a score, or a score and words."""
    score, words = given if isinstance(given, tuple) and len(given) == 2 else (given, "")
    try:
        return Answer(opinion_of(score, words))
    except OpinionError as error:
        return Answer(failure=str(error))
