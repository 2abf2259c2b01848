"""Ray Data: ``map_batches`` with an actor that is asynchronous inside."""

from __future__ import annotations

import asyncio
from typing import Any

import ray

from benchmarks.contenders import work


class Generate:
    """The actor; it holds so many requests at once over all batches that it is given."""

    def __init__(self) -> None:
        self._http = work.http_client()
        self._uploads = work.Uploads()
        self._semaphore = asyncio.Semaphore(work.AT_ONCE)

    async def __call__(self, batch: dict[str, Any]) -> Any:  # noqa: ANN401 - Ray's protocol
        """A batch of rows to a batch of names, empty where an image failed."""
        rows = zip(batch["id"], batch["prompt"], batch["seed"], strict=True)
        names = await asyncio.gather(*[self._one(str(i), str(p), int(s)) for i, p, s in rows])
        yield {"id": batch["id"], "name": names}

    async def _one(self, row_id: str, prompt: str, seed: int) -> str:
        async with self._semaphore:
            try:
                content = await work.generate(self._http, prompt, seed)
            except Exception:  # noqa: BLE001 - one row must not end the whole job
                return ""
            await self._uploads.put(work.name_of(row_id), content)
            return work.name_of(row_id)


if __name__ == "__main__":
    ray.init()
    names = ray.data.read_parquet(work.CATALOG).map_batches(Generate, batch_size=work.AT_ONCE, concurrency=1)
    names.write_parquet(str(work.HOME / "names"))
