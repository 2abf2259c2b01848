"""The judge that the settings name."""

from __future__ import annotations

import os
from urllib.parse import urlsplit

from pydantic import SecretStr

from imagemill.errors import InputError
from imagemill.quality.function_judge import FunctionJudge, load_function
from imagemill.quality.judge import Judge
from imagemill.quality.vision_judge import KEY_VARIABLE, Limiter, VisionJudge
from imagemill.secrets import clean_key
from imagemill.settings import LimitSettings, QualitySettings

_OPENAI = "api.openai.com"


def named_judge(quality: QualitySettings, limits: LimitSettings, limiter: Limiter) -> Judge | None:
    """The judge, not yet opened; None where the settings name none.

    Raises:
        InputError: there is no such function, or a cost limit is set and the judge's price is unknown.
    """
    if quality.judge is None:
        return None
    if not quality.judge_is_model:
        function = load_function(quality.judge)
        return FunctionJudge(function, batch=quality.judge_batch, timeout_s=quality.judge_timeout_s)
    if not quality.judge_is_priced:
        given = {"--max-cost": limits.max_cost_usd, "approve_above_usd": limits.approve_above_usd}
        for name, usd in given.items():
            if usd is not None:
                raise InputError(
                    f"{name} needs a price, but that of the judge is unknown. Set its prices with"
                    " --judge-usd-per-million-input-tokens and --judge-usd-per-million-output-tokens; 0 if it"
                    " charges nothing."
                )
    usd_in = quality.judge_usd_per_million_input_tokens or 0.0
    usd_out = quality.judge_usd_per_million_output_tokens or 0.0
    return VisionJudge(
        quality.judge,
        quality.judge_model or "",
        quality.judge_question,
        key=_key(quality.judge),
        usd_per_million_tokens=(usd_in, usd_out),
        timeout_s=quality.judge_timeout_s,
        limiter=limiter,
    )


def _key(base_url: str) -> SecretStr | None:
    """The judge's own key; OPENAI_API_KEY only where it belongs. Servers of one's own may need none."""
    for name in (KEY_VARIABLE, *(["OPENAI_API_KEY"] if urlsplit(base_url).hostname == _OPENAI else [])):
        try:
            key = clean_key(os.environ.get(name, ""))
        except ValueError as error:
            raise InputError(f"The environment variable {name}: {error}.") from error
        if key:
            return SecretStr(key)
    return None
