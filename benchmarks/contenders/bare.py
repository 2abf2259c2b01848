"""The floor: a worker pool that asks and puts; no retries, no records, no checks."""

from __future__ import annotations

import asyncio
import contextlib
from concurrent.futures import ThreadPoolExecutor

import httpx

from benchmarks.contenders import work


async def main() -> None:
    """Work off the catalog once."""
    left = work.rows()[::-1]
    s3, threads, loop = work.s3_client(), ThreadPoolExecutor(work.AT_ONCE), asyncio.get_running_loop()

    async def worker(http: httpx.AsyncClient) -> None:
        while left:
            row = left.pop()
            with contextlib.suppress(httpx.HTTPError):
                body = work.order(row["prompt"], row["seed"])
                content = work.image_of(await http.post(work.endpoint(), json=body))
                await loop.run_in_executor(threads, work.put, s3, row["id"], content)

    async with work.http_client() as http:
        await asyncio.gather(*[worker(http) for _ in range(work.AT_ONCE)])


if __name__ == "__main__":
    asyncio.run(main())
