"""The key decides what is one picture; the seed of a prompt is for ever."""

from __future__ import annotations

from typing import Any

import pytest

from imagemill.blocks.apis import OpenAICompatible, Together
from imagemill.catalog.keys import job_key, normalized, prompt_seed

BASE: dict[str, Any] = {
    "model": "fal/fal-ai/flux/schnell",
    "prompt": "a red fox",
    "negative_prompt": None,
    "width": 1024,
    "height": 1024,
    "steps": 4,
    "seed": 7,
    "image_format": "png",
}


@pytest.mark.parametrize(
    "change",
    [
        {"model": "together/x"}, {"prompt": "a red foxx"}, {"negative_prompt": "blur"}, {"width": 512},
        {"height": 512}, {"steps": 3}, {"seed": 8}, {"image_format": "jpeg"},
        {"params": '{"guidance":3}'},
    ],
)  # fmt: skip
def test_everything_that_decides_the_picture_changes_the_key(change: dict[str, Any]) -> None:
    assert job_key(**{**BASE, **change}) != job_key(**BASE)


def test_params_cannot_pass_for_a_seed_or_a_prompt() -> None:
    one = job_key(**{**BASE, "params": '{"a":1}', "prompt": "b"})
    assert one != job_key(**{**BASE, "params": '{"a":1}|7|-|b', "prompt": ""})
    assert one != job_key(**{**BASE, "params": "", "prompt": '7:{"a":1}|7|-|b'})


def test_fields_cannot_run_into_each_other() -> None:
    one = job_key(**{**BASE, "prompt": 'a","b', "negative_prompt": "c"})
    other = job_key(**{**BASE, "prompt": "a", "negative_prompt": 'b","c'})
    assert one != other


def test_keys_and_seeds_stay_what_they_were() -> None:
    """Yesterday's pictures must be found tomorrow: a change here pays for every picture again."""
    assert job_key(**BASE) == "0f5119473afa0e2fd48d950e15b1738f2faa19dc"
    assert prompt_seed("a red fox") == 2028092673


def test_white_space_and_unicode_forms_are_one_prompt() -> None:
    assert normalized("  cafe\u0301\n") == normalized("café") == "caf\u00e9"


def test_what_a_server_is_sent_beyond_the_standard_is_in_the_key_and_nothing_else() -> None:
    def of(base_url: str = "http://one:8000", **fields: Any) -> str:
        return OpenAICompatible(api_key="k", model="m", base_url=base_url, extra_fields=fields).picture_model

    assert of() == of("http://two:8000") == "openai/m"  # as it has always been
    assert of(seed="{seed}", num_inference_steps="{steps}") == "openai/m"
    assert of(guidance=3) == of("http://one:8000/v1", guidance=3, seed="{seed}")
    assert len({of(), of(guidance=3), of(guidance=4), of("http://two:8000", guidance=3)}) == 4
    assert Together(api_key="k", model="m").picture_model == "together/m"
