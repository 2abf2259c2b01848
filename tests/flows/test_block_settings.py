"""A saved block's own provider, model and time limit hold everywhere: runs, metrics, report, HTTP client."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from imagemill import generate_catalog
from imagemill.blocks.apis import Fal
from imagemill.cli.command import main
from imagemill.emulator import Emulator
from imagemill.errors import InputError
from imagemill.runs.session import open_session
from imagemill.settings import RunSettings
from tests.conftest import Place

pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.mark.slow
def test_the_block_decides_what_the_settings_leave_open(
    place: Place,
    emulator: Callable[..., Emulator],
    catalog: Callable[..., str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    emulated = emulator(latency_s=0.02)
    Fal(api_key="k", base_url=emulated.base_url, request_timeout_s=300.0).save("own", overwrite=True)
    path = catalog(prompt=["a", "b"])
    given = {"output": place.settings(), "picture": {"width": 256, "height": 256}}
    api = {"block": "imagemill-fal/own"}
    summary = generate_catalog(catalog=path, api=api, execution={"run_id": "block"}, **given)

    assert summary.done == 2
    (row,) = place.table("metrics/run_id=block/run.parquet")
    assert row["provider"] == "fal"
    report = place.read("runs/block/report.html").decode()
    assert "fal-ai/flux/schnell" in report
    assert "together" not in report
    assert main(["runs"]) == 0
    shown = capsys.readouterr().out
    assert "fal" in shown
    assert "together" not in shown

    # The same block again is the same run; another model is not.
    assert generate_catalog(catalog=path, api=api, execution={"run_id": "block"}, **given).generated == 2
    other = {**api, "model": "fal-ai/flux/dev"}
    with pytest.raises(InputError, match="exists with the model 'fal-ai/flux/schnell'"):
        generate_catalog(catalog=path, api=other, execution={"run_id": "block"}, **given)
    assert emulated.bill()["images"] == 2

    # A connection waits as long as a request may take.
    described = {"catalog": path, "api": api, "output": place.settings(), "run_id": "waits"}
    with open_session(RunSettings.model_validate(described)) as session:
        assert session.engine.routes.first.http.timeout.read == 300.0

    # Its name alone is enough; a wrong one is answered with those that exist.
    again = generate_catalog(catalog=path, api={"block": "own "}, execution={"run_id": "block "}, **given)
    assert (again.run_id, again.generated) == ("block", 2)
    for wrong in ("owm", "imagemill-fal/owm", "nothing/own"):
        with pytest.raises(InputError, match=r"no saved block .*imagemill-fal/own"):
            generate_catalog(catalog=path, api={"block": wrong}, **given)
    bucket = {**place.settings(), "s3_bucket_block": "nowhere"}
    with pytest.raises(InputError, match="no saved block 'nowhere'"):
        generate_catalog(catalog=path, api=api, **given | {"output": bucket})


@pytest.mark.slow
def test_a_request_may_take_as_long_as_the_block_says(
    place: Place, emulator: Callable[..., Emulator], catalog: Callable[..., str]
) -> None:
    emulated = emulator(latency_s=1.5, latency_sigma=0)
    Fal(api_key="k", base_url=emulated.base_url, request_timeout_s=0.5).save("hasty", overwrite=True)
    for more, done in (({}, 0), ({"request_timeout_s": 30.0}, 1)):
        summary = generate_catalog(
            catalog=catalog(prompt=[f"a {done}"]),
            api={"block": "imagemill-fal/hasty", **more},
            output=place.settings(),
            picture={"width": 256, "height": 256},
            execution={"run_id": f"hasty-{done}"},
        )
        assert summary.done >= done
        assert bool(summary.retries) is not bool(done)
