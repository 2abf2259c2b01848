"""The loop of the guides: chunks that are settled before the next begins, a checkpoint file after each."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx

from benchmarks.contenders import work


async def main() -> None:
    """Work off what the checkpoint does not have."""
    checkpoint = work.HOME / "checkpoint.json"
    done: dict[str, str] = json.loads(checkpoint.read_text()) if checkpoint.exists() else {}
    left = [row for row in work.rows() if row["id"] not in done]
    uploads = work.Uploads()

    async def one(http: httpx.AsyncClient, row: dict[str, Any]) -> str:
        content = await work.generate(http, row["prompt"], row["seed"])
        await uploads.put(work.name_of(row["id"]), content)
        return work.name_of(row["id"])

    async with work.http_client() as http:
        for first in range(0, len(left), work.AT_ONCE):
            chunk = left[first : first + work.AT_ONCE]
            results = await asyncio.gather(*[one(http, row) for row in chunk], return_exceptions=True)
            for row, result in zip(chunk, results, strict=True):
                if isinstance(result, str):
                    done[row["id"]] = result
            checkpoint.write_text(json.dumps(done))


if __name__ == "__main__":
    asyncio.run(main())
