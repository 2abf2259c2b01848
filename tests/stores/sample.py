"""Jobs to keep."""

from __future__ import annotations

from imagemill.jobs import Job


def job(number: int, **given: object) -> Job:
    values: dict[str, object] = {
        "id": f"row-{number}", "key": f"{number:064x}", "prompt": f"A lighthouse, number {number}",
        "negative_prompt": None, "width": 1024, "height": 768, "seed": number * 7_000_003, "steps": 4,
        "model": "flux/schnell", "format": "png", "params": '{"guidance":3.5}' if number % 2 else "",
    }  # fmt: skip
    return Job(number, **{**values, **given})  # type: ignore[arg-type]


def done(number: int, **given: object) -> Job:
    finished = job(number, **given)
    finished.start(1000.5)
    finished.cost_usd = 0.003
    finished.cost_source = "told"
    finished.finish(1001.25, image=f"images/{number}.png", image_bytes=12345, latency_s=0.75)
    return finished
