"""A look before paying for all: a sample of the whole catalog, which the run that follows finds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from prefect.states import State

from imagemill.emulator import Emulator
from imagemill.errors import StoreUnavailableError
from imagemill.flows.generate_catalog import generate_catalog
from imagemill.flows.preview_catalog import preview_catalog
from imagemill.reports.preview import make_preview
from imagemill.runs.planning import plan_run
from imagemill.runs.session import open_session
from imagemill.settings import ApiSettings, PictureSettings
from tests.conftest import Place
from tests.reports.test_report import Page
from tests.runs.test_session import settings


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_server")
def test_a_preview_shows_a_sample_that_is_not_bought_again(
    place: Place, emulator: Callable[..., Emulator], catalog: Callable[..., str]
) -> None:
    emulated = emulator()
    titles = [*[f"Mug no. {number}" for number in range(40)], "Bad #fault:400", None, "Mug no. 0"]
    given: dict[str, Any] = {
        "catalog": {
            "path": catalog(title=titles),
            "prompt_template": "Studio photo of {{ title }}",
            "variations": 2,
        },
        "api": {"provider": "together", "base_url": emulated.base_url},
        "output": place.settings(),
        "picture": {"width": 256, "height": 256},
    }

    found = preview_catalog(**given, images=8, execution={"run_id": "look"})

    price = 0.0027 * 256 * 256 / 1e6
    assert (found.rows, found.variants, found.rejected, found.unique, found.duplicates) == (43, 2, 1, 82, 2)
    assert (found.shown, found.generated, found.failed, found.left) == (8, 8, 0, 74)
    assert found.cost_usd == pytest.approx(82 * price)
    assert found.left_usd == pytest.approx(74 * price)
    assert found.paid_usd == pytest.approx(emulated.bill()["usd"], rel=1e-6)
    assert emulated.bill()["images"] == 8
    assert "manifest.parquet" not in place.objects()
    page = Page(place.read("runs/look/preview.html").decode())
    assert len(page.named("img")) == 8
    prompts = {image["alt"] for image in page.named("img")}
    assert prompts == {f"Studio photo of Mug no. {number}" for number in (0, 11, 22, 33)}
    assert "is empty in this row" in page.text
    assert "imagemill resume look" in page.text

    ended: State[Any] = preview_catalog(**given, images=8, execution={"run_id": "again"}, return_state=True)
    again = ended.result()
    assert (again.shown, again.generated) == (8, 0)  # the same sample
    assert (ended.type, ended.name) == ("COMPLETED", "CompletedWithRejectedRows")
    assert ended.message == (
        "Preview again: 8 pictures are done, 1 row was rejected; it cost nothing, and all 82 pictures would"
        " cost $0.0145; start generate-catalog with this run id to make the other 74."
    )

    rest = generate_catalog(**given, execution={"run_id": "look"})  # as a resume does
    assert (rest.done, rest.failed, rest.generated) == (80, 2, 80)
    assert emulated.bill()["images"] == 80
    assert len(place.table("manifest.parquet")) == 85


def test_a_preview_beside_an_estimate_stays_below_what_needs_no_approval(
    place: Place,
    emulator: Callable[..., Emulator],
    catalog: Callable[..., str],
    make_read_only: Callable[[], None],
) -> None:
    emulated = emulator()
    path = catalog(prompt=[str(number) for number in range(40)], width=[1024] * 4 + [256] * 36)
    given = settings(place, path).model_copy(update={"api": ApiSettings(base_url=emulated.base_url)})
    given = given.model_copy(update={"picture": PictureSettings(width=256, height=256)})
    most_usd = 7 * 0.0027 * 256 * 256 / 1e6  # of twelve pictures one or two cost four times as much
    with open_session(given) as session:
        counts, _ = plan_run(session)
        found = make_preview(session, counts, 12, most_usd)
        assert (found.shown, found.paid_usd) == (4, pytest.approx(most_usd))
        make_read_only()
        with pytest.raises(StoreUnavailableError, match=r"runs/r \(Read-only file system\)"):
            make_preview(session, counts, 12, most_usd)
    assert emulated.bill()["usd"] == pytest.approx(most_usd)
