"""One real picture per vendor, and whether the vendor still answers as imagemill's emulator does.

    python examples/canary.py --folder canary

Buys one picture at every vendor whose key is in the environment, for a fraction of a cent to a few cents
each, and asks the emulator for the same. ``FOLDER/VENDOR.json`` keeps what came back: methods, paths,
statuses and the shapes of answers, never texts, links or headers, so nothing in it is secret. It prints what
differs, and exits with 1 where a field that the emulator has is gone or has another type, or there was no
picture. ``examples/canary.yml`` runs it every week on GitHub.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import uuid
from pathlib import Path
from typing import Any

import anyio
import httpx

from imagemill.blocks.apis import PROVIDERS, GeneratedImage, ImageApi
from imagemill.emulator import Emulator, Settings
from imagemill.engine.image_check import check_picture
from imagemill.errors import ApiError, InputError
from imagemill.jobs import Job

_ID = re.compile(r"(?=[^/]*[0-9])[A-Za-z0-9_-]{10,}")


class Recorder(httpx.AsyncBaseTransport):
    """Passes requests on, and keeps the shape of each exchange."""

    def __init__(self) -> None:
        self._inner = httpx.AsyncHTTPTransport()
        self.exchanges: list[dict[str, Any]] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        answer = await self._inner.handle_async_request(request)
        content = await answer.aread()
        is_image = answer.headers.get("content-type", "").startswith("image/")
        self.exchanges.append(
            {
                "method": request.method,
                "path": "(image)" if is_image else _ID.sub("ID", request.url.path),
                "status": answer.status_code,
                "answer": "(image)" if is_image else shape_of_text(content),
            }
        )
        headers = {k: v for k, v in answer.headers.items() if k not in {"content-encoding", "content-length"}}
        return httpx.Response(answer.status_code, headers=headers, content=content)

    async def aclose(self) -> None:
        await self._inner.aclose()


def shape_of_text(content: bytes) -> object:
    """The shape of JSON; of server-sent events, the shape of the last one."""
    events = [line[5:] for line in content.splitlines() if line.startswith(b"data:")]
    try:
        return shape(json.loads(events[-1] if events else content))
    except ValueError:
        return "(no JSON)"


def shape(value: object) -> object:
    """What a JSON value is made of: names and types, no texts."""
    match value:
        case dict():
            return {name: shape(inner) for name, inner in sorted(value.items())}
        case list():
            return [shape(value[0])] if value else []
        case bool():
            return "true or false"
        case int() | float():
            return "number"
        case str():
            return "text"
    return "null"


def differences(ours: object, theirs: object, where: str = "") -> tuple[list[str], list[str]]:
    """What the vendor's answer lacks or has otherwise, and what it has beyond the emulator's."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        broken = [f"{where}.{name} is gone" for name in ours if name not in theirs]
        more = [f"{where}.{name} is new" for name in theirs if name not in ours]
        for name in ours.keys() & theirs.keys():
            inner_broken, inner_more = differences(ours[name], theirs[name], f"{where}.{name}")
            broken, more = broken + inner_broken, more + inner_more
        return broken, more
    if isinstance(ours, list) and isinstance(theirs, list):
        return differences(ours[0], theirs[0], f"{where}[0]") if ours and theirs else ([], [])
    if ours == theirs or "null" in (ours, theirs):
        return [], []
    return [f"{where} is {theirs if isinstance(theirs, str) else 'an object or a list'}, not {ours}"], []


def a_job(api: ImageApi) -> Job:
    """A small picture that the API's model makes."""
    sides = next(s for s in (512, 1024) if not api.refusal(s, s, api.profile.steps.default))
    return Job(
        number=0, id="canary", key=uuid.uuid4().hex, prompt="A canary on a branch, morning light",
        negative_prompt=None, width=sides, height=sides, seed=1, steps=api.profile.steps.default,
        model=api.model, format="png",
    )  # fmt: skip


async def ask(api: ImageApi) -> tuple[list[dict[str, Any]], GeneratedImage]:
    """Make one picture; what was exchanged, each kind once, and the picture."""
    job, recorder = a_job(api), Recorder()

    async def accepted(request_id: str, _charged_usd: float | None = None) -> None:
        job.request_id = request_id

    async with httpx.AsyncClient(transport=recorder, timeout=300) as http:
        image = await api.generate(http, job, accepted)
    check_picture(image.content, job.width, job.height)
    latest = {(e["method"], e["path"], e["status"]): e for e in recorder.exchanges}
    return list(latest.values()), image


def compare(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> tuple[list[str], list[str]]:
    """The differences between what the emulator and the vendor answered."""
    known = {(e["method"], e["path"]): e for e in ours}
    broken, more = [], []
    for exchange in theirs:
        name = f"{exchange['method']} {exchange['path']}"
        twin = known.get((exchange["method"], exchange["path"]))
        if twin is None:
            more.append(f"{name} is not among the emulator's answers")
            continue
        if twin["status"] != exchange["status"]:
            broken.append(f"{name} answered {exchange['status']}, not {twin['status']}")
        lacking, beyond = differences(twin["answer"], exchange["answer"])
        broken += [f"{name}: {words}" for words in lacking]
        more += [f"{name}: {words}" for words in beyond]
    return broken, more


def try_vendor(provider: str, base_url: str, emulator: Emulator, folder: Path) -> bool:
    """Ask one vendor and the emulator; whether nothing is broken."""
    api = PROVIDERS[provider].from_environment(base_url=base_url)
    given = {"account": "canary"} if "account" in type(api).model_fields else {}
    twin = type(api)(api_key="canary-key", base_url=emulator.base_url, model=api.model, **given)
    try:
        theirs, image = anyio.run(ask, api)
        ours, _ = anyio.run(ask, twin)
    except (ApiError, httpx.HTTPError) as error:
        print(f"{provider}: no picture: {error}")
        return False
    broken, more = compare(ours, theirs)
    record = {"vendor": provider, "model": api.model, "broken": broken, "more": more, "exchanges": theirs}
    (folder / f"{provider}.json").write_text(json.dumps(record, indent=2) + "\n")
    print(f"{provider}: a picture for ${image.cost_usd:.6f} ({image.cost_source}),", end=" ")
    print(f"{len(broken)} fields broken, {len(more)} beyond the emulator's")
    for words in (*broken, *more):
        print(f"  {words}")
    return not broken


def main() -> int:
    """Try every vendor that there is a key for; 0 where all is well."""
    parser = argparse.ArgumentParser(description="One real picture per vendor, its answers compared.")
    parser.add_argument("--folder", type=Path, default=Path("canary"), help="where the records go")
    parser.add_argument("--vendor", action="append", choices=sorted(PROVIDERS), help="only these")
    parser.add_argument("--base-url", default="", help="another address, to try the canary itself")
    chosen = parser.parse_args()
    providers = chosen.vendor or [name for name, api in PROVIDERS.items() if os.environ.get(api.key_variable)]
    if not providers:
        print("There is no key in the environment: nothing was asked.")
        return 1
    chosen.folder.mkdir(parents=True, exist_ok=True)
    with Emulator(Settings(latency_s=0.2, pictures="fast")) as emulator:
        try:
            good = [try_vendor(name, chosen.base_url, emulator, chosen.folder) for name in providers]
        except InputError as error:
            print(error)
            return 1
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
