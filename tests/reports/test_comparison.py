"""Two runs side by side: which rows are in both, which pictures differ, and how the metrics do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from imagemill.cli.command import main
from imagemill.emulator import Emulator
from imagemill.flows.generate_catalog import generate_catalog
from imagemill.reports.comparison import MetricRow, metric_rows
from imagemill.runs.folder import RunFolder
from tests.conftest import Place
from tests.reports.test_report import summary

HOSTILE = "<script>alert(1)</script> \u202e fish"


@pytest.mark.usefixtures("prefect_server")
def test_the_same_rows_of_two_runs_are_side_by_side(
    place: Place,
    emulator: Callable[..., Emulator],
    catalog: Callable[..., str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    base_url = emulator(pictures="full").base_url

    def make(run_id: str, prompts: dict[str, str], seed: int) -> None:
        generate_catalog(
            catalog=catalog(f"{run_id}.parquet", id=list(prompts), prompt=list(prompts.values())),
            output=place.settings() | {"uri": f"{place.uri}/{run_id}"},
            api={"provider": "together", "base_url": base_url},
            picture={"width": 256, "height": 256, "seed_policy": f"fixed:{seed}"},
            execution={"run_id": run_id},
        )

    make("one", {"a": "A tram", "b": HOSTILE, "c": "A pier #fault:400", "left": "A gate"}, 1)
    make("two", {"c": "A pier", "b": HOSTILE, "a": "A blue tram", "come": "A door"}, 2)
    shutil.rmtree(RunFolder("two").path)
    with pytest.raises(SystemExit):
        main(["compare", "one"])
    capsys.readouterr()
    assert main(["compare", "one", "two"]) == 2, "the run is not on this machine"
    output = ["--output", f"{place.uri}/two", "--s3-endpoint-url", place.s3.endpoint_url]
    capsys.readouterr()
    assert main(["compare", "one", "two", *output, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    counts = {name: found[name] for name in ("in_both", "only_a", "only_b", "same", "shown")}
    assert counts == {"in_both": 3, "only_a": 1, "only_b": 1, "same": 0, "shown": 3}
    page = place.read("one/runs/one/compare-two.html").decode()
    assert page == Path(found["file"]).read_text()
    assert page.count("<img ") == 5
    assert "bad_request" in page or "400" in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "<script" not in page
    assert "A blue tram" in page
    assert main(["compare", "one", "one"]) == 0
    shown = capsys.readouterr().out
    assert "3 share one image" in shown
    assert "p95 latency" in shown


def test_a_change_is_for_better_or_worse() -> None:
    one = summary(images_per_minute=100.0, error_rate=0.1, p95_latency_s=None, cost_usd=2.0)
    two = summary(images_per_minute=150.0, error_rate=0.2, p95_latency_s=4.0, cost_usd=2.0, done=0)
    assert metric_rows(one, two) == [
        MetricRow("Images per minute", "100", "150", "+50%", "better"),
        MetricRow("Error rate", "10%", "20%", "+100%", "worse"),
        MetricRow("p95 latency", "\u2013", "4.00 s"),
        MetricRow("Total cost", "$2.00", "$2.00", "same"),
        MetricRow("Cost per image", "$0.00125", "$0.00125", "same"),
        MetricRow("Images done", "1,632", "0", "-100%"),
        MetricRow("Suspect", "0%", "\u2013"),
    ]
