"""The vendor's own SDK in a loop, as its documents show it: a task a prompt, a semaphore, two retries."""

from __future__ import annotations

import asyncio
import base64
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from together import AsyncTogether

from benchmarks.contenders import work


async def main() -> None:
    """Work off the catalog once."""
    s3, threads, loop = work.s3_client(), ThreadPoolExecutor(work.AT_ONCE), asyncio.get_running_loop()
    semaphore = asyncio.Semaphore(work.AT_ONCE)

    async def one(client: AsyncTogether, row: dict[str, Any]) -> None:
        async with semaphore:
            answer = await client.images.generate(**work.order(row["prompt"], row["seed"]))
            content = base64.b64decode(answer.data[0].b64_json or "")  # type: ignore[union-attr]
            await loop.run_in_executor(threads, work.put, s3, row["id"], content)

    async with AsyncTogether(api_key="benchmark", base_url=work.API_URL) as client:
        await asyncio.gather(*[one(client, row) for row in work.rows()], return_exceptions=True)


if __name__ == "__main__":
    asyncio.run(main())
