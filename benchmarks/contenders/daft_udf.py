"""Daft: an asynchronous function over a column, with its own retries and limit of calls at once."""

from __future__ import annotations

import daft

from benchmarks.contenders import work


@daft.cls(max_concurrency=work.AT_ONCE)
class Generate:
    """What the calls share."""

    def __init__(self) -> None:
        self._http = work.http_client()
        self._uploads = work.Uploads()

    @daft.method(return_dtype=daft.DataType.string(), max_retries=3, on_error="ignore")
    async def one(self, row_id: str, prompt: str, seed: int) -> str:
        """One image into the bucket; its name there."""
        content = work.image_of(await self._http.post(work.endpoint(), json=work.order(prompt, seed)))
        await self._uploads.put(work.name_of(row_id), content)
        return work.name_of(row_id)


if __name__ == "__main__":
    catalog = daft.read_parquet(work.CATALOG)
    catalog = catalog.with_column("name", Generate().one(catalog["id"], catalog["prompt"], catalog["seed"]))
    catalog.select("id", "name").write_parquet(str(work.HOME / "names"))
