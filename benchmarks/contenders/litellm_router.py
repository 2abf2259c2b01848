"""LiteLLM's router with one deployment: it queues, counts and retries; only the upload is written by hand."""

from __future__ import annotations

import asyncio
import base64
import os
from typing import Any

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else it asks GitHub for prices before it starts
import litellm

from benchmarks.contenders import work


async def main() -> None:
    """Work off the catalog once."""
    uploads = work.Uploads()
    asked = work.order("", 0)
    router = litellm.Router(
        model_list=[
            {
                "model_name": "flux",
                "litellm_params": {
                    "model": f"openai/{asked['model']}",
                    "api_base": f"{work.API_URL}/v1",
                    "api_key": "benchmark",
                    "timeout": work.TIMEOUT_S,
                },
            }
        ],
        num_retries=3,
    )
    semaphore = asyncio.Semaphore(work.AT_ONCE)

    async def one(row: dict[str, Any]) -> None:
        more = work.order(row["prompt"], row["seed"])
        prompt = more.pop("prompt")
        del more["model"], more["n"]
        async with semaphore:
            answer = await router.aimage_generation(model="flux", prompt=prompt, extra_body=more)
            content = base64.b64decode(answer.data[0].b64_json or "")
            await uploads.put(work.name_of(row["id"]), content)

    await asyncio.gather(*[one(row) for row in work.rows()], return_exceptions=True)


if __name__ == "__main__":
    asyncio.run(main())
