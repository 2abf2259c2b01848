"""NeMo Data Designer: the catalog seeds a data set whose image column an OpenAI-compatible API fills.

Its images go to files, which are put into the bucket afterwards. A row's seed cannot be given to the API.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

os.environ["NEMO_TELEMETRY_ENABLED"] = "false"  # it is read at the import
import data_designer.config as dd
from data_designer.interface import DataDesigner

from benchmarks.contenders import work


async def upload(rows: list[tuple[str, Path]]) -> None:
    """All images into the bucket."""
    uploads, left = work.Uploads(), rows[::-1]

    async def worker() -> None:
        while left:
            row_id, file = left.pop()
            await uploads.put(work.name_of(row_id), file.read_bytes())

    await asyncio.gather(*[worker() for _ in range(work.AT_ONCE)])


def main() -> None:
    """Work off the catalog once."""
    more = work.order("", 0)
    for name in ("prompt", "seed", "n"):
        del more[name]
    parameters = dd.ImageInferenceParams(
        max_parallel_requests=work.AT_ONCE, timeout=int(work.TIMEOUT_S), extra_body=more
    )
    provider = dd.ModelProvider(name="together", endpoint=f"{work.API_URL}/v1", api_key="benchmark")
    config = dd.DataDesignerConfigBuilder(
        model_configs=[
            dd.ModelConfig(
                alias="flux",
                model="stable-diffusion",  # by its name it knows the endpoint; the body names the model
                provider="together",
                inference_parameters=parameters,
                skip_health_check=True,
            )
        ]
    )
    config.with_seed_dataset(dd.LocalFileSeedSource(path=work.CATALOG))
    config.add_column(dd.ImageColumnConfig(name="image", prompt="{{ prompt }}", model_alias="flux"))
    designer = DataDesigner(artifact_path=work.HOME / "designer", model_providers=[provider])
    designer.set_run_config(dd.RunConfig(buffer_size=4 * work.AT_ONCE))  # what a kill loses
    found = designer.create(config, num_records=len(work.rows()), resume=dd.ResumeMode.IF_POSSIBLE)
    made, folder = found.load_dataset(), found.artifact_storage.base_dataset_path
    images = zip(made["id"], made["image"], strict=True)
    asyncio.run(upload([(row_id, folder / files[0]) for row_id, files in images]))


if __name__ == "__main__":
    main()
