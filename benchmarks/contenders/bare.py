"""The floor: a worker pool that asks and puts; no retries, no records, no checks."""

from __future__ import annotations

import asyncio
import contextlib

import httpx

from benchmarks.contenders import work


async def main() -> None:
    """Work off the catalog once."""
    left = work.rows()[::-1]
    uploads = work.Uploads()

    async def worker(http: httpx.AsyncClient) -> None:
        while left:
            row = left.pop()
            with contextlib.suppress(httpx.HTTPError):
                body = work.order(row["prompt"], row["seed"])
                content = work.image_of(await http.post(work.endpoint(), json=body))
                await uploads.put(work.name_of(row["id"]), content)

    async with work.http_client() as http:
        await asyncio.gather(*[worker(http) for _ in range(work.AT_ONCE)])


if __name__ == "__main__":
    asyncio.run(main())
