"""Checks a catalog's rows for several routes: a row is rejected only where none of them makes it."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from imagemill.catalog.makers import Maker, Makers, PictureMaker
from imagemill.catalog.rows import CatalogRows, Judge, Judged
from imagemill.errors import InputError
from imagemill.settings import PictureSettings


class SharedJudge:
    """Judges each row by the model of each route; one that a route makes is as the first such route has it.

    Raises:
        InputError: the settings' own params are not ones that any of the models takes.
    """

    def __init__(self, makers: Makers, picture: PictureSettings) -> None:
        # One number of steps for all, or the key of a picture would depend on who makes it.
        steps = picture.steps or makers.profile.steps.default
        picture = picture.model_copy(update={"steps": steps})
        self._takes_negatives = makers.profile.uses_negative_prompt
        self._judges: list[tuple[Maker, Judge]] = []
        self._refused: list[tuple[Maker, str]] = []
        for maker in makers.makers:
            if picture.format not in maker.api.image_formats:
                self._refused.append((maker, f"it does not make {picture.format} images"))
                continue
            try:
                self._judges.append((maker, Judge(maker.api, picture)))
            except InputError as error:
                self._refused.append((maker, str(error).rstrip(".")))
        if not self._judges:
            raise InputError("; ".join(f"{maker.name}: {reason}" for maker, reason in self._refused) + ".")

    def judge(self, batch: pa.Table, numbers: Sequence[int], reasons: dict[int, str]) -> Judged:
        """Judge rows as :meth:`.Judge.judge` does."""
        found = [
            (maker, self._by(maker, judge.judge(batch, numbers, dict(reasons))))
            for maker, judge in self._judges
        ]
        first = found[0][1]
        if len(first.rows.places) == batch.num_rows - len(reasons):
            return first
        chosen: dict[int, tuple[CatalogRows, int]] = {}
        for _, judged in reversed(found):
            chosen.update({place: (judged.rows, index) for index, place in enumerate(judged.rows.places)})
        places = sorted(chosen)
        columns = [
            [chosen[place][0][column][chosen[place][1]] for place in places]
            for column in range(len(CatalogRows._fields))
        ]
        refused = [place for place in range(batch.num_rows) if place not in chosen]
        for place in refused:
            reasons.setdefault(
                place, self._in_words([(maker, judged.reasons[place]) for maker, judged in found])
            )
        return Judged(first.names, CatalogRows._make(columns), reasons)

    def _by(self, maker: Maker, judged: Judged) -> Judged:
        """Reject rows with a negative prompt where this model would ignore it, and another does not."""
        if not self._takes_negatives or maker.api.profile.uses_negative_prompt:
            return judged
        rows = judged.rows
        kept = [index for index, negative in enumerate(rows.negative_prompts) if negative is None]
        for index, negative in enumerate(rows.negative_prompts):
            if negative is not None:
                judged.reasons.setdefault(rows.places[index], "the model takes no negative prompt")
        return judged._replace(rows=rows.only(kept))

    def _in_words(self, reasons: Sequence[tuple[Maker, str]]) -> str:
        every = [*reasons, *self._refused]
        words = {reason for _, reason in every}
        return words.pop() if len(words) == 1 else "; ".join(f"{maker.name}: {why}" for maker, why in every)


def judge_of(maker: PictureMaker, picture: PictureSettings) -> Judge | SharedJudge:
    """What checks the rows of a run.

    Raises:
        InputError: the settings' own params are not ones that the model takes.
    """
    return SharedJudge(maker, picture) if isinstance(maker, Makers) else Judge(maker, picture)
