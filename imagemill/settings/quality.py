"""Whether pictures are measured and judged."""

from __future__ import annotations

import re
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from imagemill.secrets import refuse_password
from imagemill.settings.group import SettingsGroup
from imagemill.usd import price_of_tokens

USUAL_TOKENS = (2000, 200)
"""Of a vision model's opinion on a picture: in (the picture and the question), and out."""

JUDGE_FUNCTION = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)
"""How a Python function is named: ``module:function``."""


class QualitySettings(SettingsGroup):
    """Whether pictures are measured, and what happens to those that look wrong."""

    measure: Literal["auto", "all", "off"] = Field(
        default="auto",
        description="Which pictures to measure: auto (as many as fit into a tenth of the CPU time), all, or"
        " off (none). Measures and flags are in jobs.parquet.",
    )
    on_suspect: Literal["keep", "fail", "retry"] = Field(
        default="keep",
        description="What to do with a blurred, flat, letterboxed or half decoded picture: keep it and show"
        " it first in the report, fail the job, or retry once with another seed and keep the better one.",
    )
    judge: str | None = Field(
        default=None,
        description="A judge of your own: a Python function as module:function, or the address of an"
        " OpenAI-compatible API with a vision model (key in IMAGEMILL_JUDGE_KEY). A picture that scores below"
        " the threshold is suspect, with the flag judged. A function runs where the run does.",
        examples=["my_judges:is_sharp", "https://api.openai.com/v1"],
    )
    judge_model: str | None = Field(default=None, description="The vision model that judges.")
    judge_question: str = Field(
        default="Does the picture show what the prompt asks for, without visible faults?",
        max_length=4000,
        description="What the vision model is asked about each picture; 1 is yes, 0 is no.",
    )
    judge_threshold: float = Field(
        default=0.5, ge=0, le=1, description="Pictures that score below this, from 0 to 1, are suspect."
    )
    judge_timeout_s: float = Field(
        default=60.0,
        gt=0,
        le=600,
        description="Time limit for one answer of the judge, in seconds. A picture without an answer is kept"
        " unjudged.",
    )
    judge_batch: int = Field(
        default=8, ge=1, le=256, description="The most pictures that a function judges in one call."
    )
    judge_concurrency: int = Field(
        default=8, ge=1, le=256, description="Concurrent requests to the vision model."
    )
    judge_usd_per_million_input_tokens: float | None = Field(
        default=None, ge=0, description="The vision model's price in USD per million input tokens."
    )
    judge_usd_per_million_output_tokens: float | None = Field(
        default=None, ge=0, description="The same for output tokens."
    )

    @property
    def judge_is_model(self) -> bool:
        """Whether a vision model judges, and no function."""
        return self.judge is not None and self.judge.startswith(("http://", "https://"))

    @property
    def judge_is_priced(self) -> bool:
        """Whether the judge's price is known; a function has none."""
        prices = (self.judge_usd_per_million_input_tokens, self.judge_usd_per_million_output_tokens)
        return not self.judge_is_model or None not in prices

    @property
    def usual_judge_usd(self) -> float | None:
        """About what the judge's opinion on one picture costs; None if that is unknown."""
        if not self.judge_is_priced:
            return None
        prices = (self.judge_usd_per_million_input_tokens, self.judge_usd_per_million_output_tokens)
        return price_of_tokens(USUAL_TOKENS, (prices[0] or 0.0, prices[1] or 0.0))

    @model_validator(mode="after")
    def _known_judge(self) -> QualitySettings:
        if self.judge is None:
            return self
        if self.judge_is_model:
            if not urlsplit(self.judge).hostname:
                raise ValueError(f"the judge {self.judge!r} is not an http or https address")
            refuse_password(self.judge)
            if not (self.judge_model or "").strip():
                raise ValueError("a judge behind an API needs judge_model (--judge-model), its vision model")
        elif not JUDGE_FUNCTION.fullmatch(self.judge):
            raise ValueError(f"the judge {self.judge!r} is neither module:function nor an http(s) address")
        return self
