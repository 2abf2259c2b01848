"""What Pixeltable computes for a row. It wants its functions in a module that is imported."""

from __future__ import annotations

import asyncio

import pixeltable as pxt

from benchmarks.contenders import work

_uploads = work.Uploads()
_http = work.http_client()
_semaphore = asyncio.Semaphore(work.AT_ONCE)


@pxt.udf
async def image(row_id: str, prompt: str, seed: int) -> str:
    """One image: generate it, and put it into the bucket."""
    async with _semaphore:
        name = work.name_of(row_id)
        await _uploads.put(name, await work.generate(_http, prompt, seed))
    return name
