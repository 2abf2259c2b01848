"""What a person chose on the page of a review: which suspect pictures to keep, to make anew, to reject."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from itertools import chain
from pathlib import Path
from typing import Annotated, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from imagemill.engine.job_log import spelled_out
from imagemill.errors import InputError
from imagemill.formatting import counted
from imagemill.parquet import read_batches
from imagemill.settings import form_title

MOST = 8_000
"""Choices: more do not fit into the parameters of a flow run."""
_MOST_BYTES = 1_000_000

PictureName = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{40}(\.[1-9][0-9]{0,5})?$")]
"""The key of a picture, and after a dot its take, unless it is the first."""


class ReviewChoices(BaseModel):
    """The choices of a review, as its page saves them; pictures are named by their keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", field_title_generator=form_title)

    imagemill_review: Literal[1] = Field(1, title="Format", description="The version of this format.")
    run_id: str = Field(max_length=200, description="The run that was reviewed.")
    keep: list[PictureName] = Field([], max_length=MOST, description="Pictures that are right.")
    redo: list[PictureName] = Field(
        [], max_length=MOST, description="Pictures to pay for once more, with another seed."
    )
    reject: list[PictureName] = Field(
        [], max_length=MOST, description="Pictures to take out of the manifest; their rows count as failed."
    )

    @model_validator(mode="after")
    def _each_once(self) -> ReviewChoices:
        names = Counter(chain(self.keep, self.redo, self.reject))
        if len(names) > MOST:
            raise ValueError(f"there are more than {MOST:,} choices")
        if twice := [name for name, number in names.items() if number > 1]:
            raise ValueError(f"picture {twice[0]} is named twice")
        return self

    @property
    def by_picture(self) -> dict[str, Literal["keep", "redo", "reject"]]:
        """The choice for each picture."""
        return {
            **dict.fromkeys(self.keep, "keep"),
            **dict.fromkeys(self.redo, "redo"),
            **dict.fromkeys(self.reject, "reject"),
        }

    def only(self, names: Collection[str]) -> ReviewChoices:
        """The choices for these pictures."""
        kinds = {"keep": self.keep, "redo": self.redo, "reject": self.reject}
        return self.model_copy(
            update={kind: [n for n in chosen if n in names] for kind, chosen in kinds.items()}
        )

    def check(self, run_id: str, plan: Path) -> None:
        """See that the choices are for this run, whose plan.parquet is ``plan``.

        Raises:
            InputError: they are not.
        """
        if self.run_id != run_id:
            raise InputError(f"The choices are for run {self.run_id!r}, not for {run_id!r}.")
        unknown = {name.partition(".")[0] for name in self.by_picture}
        for batch in read_batches(plan, ["key"]):
            unknown.difference_update(batch["key"].to_pylist())
        if unknown:
            raise InputError(
                f"The choices name {counted(len(unknown), 'picture', 'pictures')} that run {run_id!r} does"
                f" not have, such as {min(unknown)}. Nothing was changed."
            )


def read_choices(file: Path) -> ReviewChoices:
    """Read the file that the page saved.

    Raises:
        InputError: it cannot be read, or holds something else.
    """
    try:
        with file.open("rb") as opened:
            content = opened.read(_MOST_BYTES + 1)
    except OSError as error:
        raise InputError(f"Cannot read {str(file)!r} ({error.strerror or type(error).__name__}).") from error
    if len(content) > _MOST_BYTES:
        raise InputError(f"{str(file)!r} is too large for the choices of a review: at most {MOST:,} of them.")
    other = f"{str(file)!r} is not a file that the page of imagemill review saved"
    try:
        return ReviewChoices.model_validate(orjson.loads(content))
    except orjson.JSONDecodeError as error:
        raise InputError(f"{other}: it is no JSON.") from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = spelled_out(".".join(map(str, first["loc"]))[:80]) or "the whole"
        words = str(first["msg"]).removeprefix("Value error, ")
        raise InputError(f"{other} ({place}: {words[:200]}).") from error
