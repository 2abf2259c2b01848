"""The vendor's own SDK in a loop, as its documents show it: a task a prompt, a semaphore, two retries."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

from together import AsyncTogether

from benchmarks.contenders import work


async def main() -> None:
    """Work off the catalog once."""
    uploads = work.Uploads()
    semaphore = asyncio.Semaphore(work.AT_ONCE)

    async def one(client: AsyncTogether, row: dict[str, Any]) -> None:
        async with semaphore:
            answer = await client.images.generate(**work.order(row["prompt"], row["seed"]))
            content = base64.b64decode(answer.data[0].b64_json or "")  # type: ignore[union-attr]
            await uploads.put(work.name_of(row["id"]), content)

    async with AsyncTogether(api_key="benchmark", base_url=work.API_URL) as client:
        await asyncio.gather(*[one(client, row) for row in work.rows()], return_exceptions=True)


if __name__ == "__main__":
    asyncio.run(main())
