from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from typing import Any

import pytest

from imagemill.reports.contact_sheet import Tile
from imagemill.reports.report import FailureGroup, MetricsBucket, Report, render_report
from imagemill.runs.summary import RunSummary

START = datetime(2025, 11, 25, 14, 2, 10, tzinfo=UTC)
JPEG = b"\xff\xd8\xff\xe0" + bytes(range(256)) * 32
CHARTS = 5


def bucket(second: int, **given: Any) -> MetricsBucket:
    values: dict[str, Any] = {
        "bucket_start": START + timedelta(seconds=second),
        "bucket_s": 10,
        "images": 50,
        "images_per_minute": 300.0,
        "failed": 0,
        "error_rate": 0.0,
        "p50_latency_s": 2.0,
        "p95_latency_s": 4.0,
        "cost_usd": 0.135,
        "cost_usd_total": 0.0135 * (second + 10),
        "requests": 52,
        "rate_limited": second % 3,
        "retries": 2,
        "concurrency": 40,
    }
    return MetricsBucket(**values | given)


def summary(**given: Any) -> RunSummary:
    values: dict[str, Any] = {
        "run_id": "blue-heron",
        "rows": 1700,
        "rejected": 8,
        "unique": 1632,
        "duplicates": 60,
        "done": 1632,
        "failed": 0,
        "pending": 0,
        "generated": 1600,
        "reused": 32,
        "images_per_minute": 300.0,
        "error_rate": 0.0,
        "p50_latency_s": 2.0,
        "p95_latency_s": 4.0,
        "cost_usd": 4.32,
        "saved_usd": 0.2484,
        "requests": 1640,
        "rate_limited": 21,
        "retries": 40,
        "errors": {},
        "wall_s": 320.0,
        "manifest": "s3://out/cat/manifest.parquet",
        "metrics": "s3://out/cat/runs/blue-heron/metrics.parquet",
        "report": None,
    }
    return RunSummary(**values | given)


def tile(number: int, prompt: str = "A lighthouse at dusk", **given: Any) -> Tile:
    values: dict[str, Any] = {
        "id": f"sku-{number}",
        "prompt": prompt,
        "seed": 7,
        "width": 1024,
        "height": 768,
        "uri": f"s3://out/cat/images/{number}.png",
        "thumbnail": JPEG,
    }
    return Tile(**values | given)


def report(
    buckets: Sequence[MetricsBucket] = (),
    *,
    failures: Sequence[FailureGroup] = (),
    tiles: Sequence[Tile] = (),
    charged_without_image: tuple[int, float] = (0, 0.0),
    **given: Any,
) -> Report:
    return Report(
        summary=summary(**given),
        catalog="s3://data/prompts.parquet",
        provider="together",
        model="FLUX.1-schnell",
        output="s3://out/cat",
        started=START,
        ended=START + timedelta(minutes=6),
        buckets=buckets,
        failures=failures,
        tiles=tiles,
        generated_usd=4.32 - charged_without_image[1],
        charged_without_image=charged_without_image,
        reused_usd=0.0864,
        duplicates_usd=0.162,
    )


class Page(HTMLParser):
    """A rendered report as a reader finds it: its tags, its text, its charts."""

    _VOID = frozenset({"meta", "link", "img", "br", "input"})

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self._words: list[str] = []
        self._open: list[str] = []
        self.feed(markup)
        self.close()
        assert not self._open, f"never closed: {self._open}"
        self.text = " ".join("".join(self._words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in self._VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] != "style":
            self._words.append(data)

    def having(self, css_class: str) -> list[dict[str, str]]:
        return [given for _, given in self.tags if css_class in given.get("class", "").split()]

    def named(self, tag: str) -> list[dict[str, str]]:
        return [given for name, given in self.tags if name == tag]

    def lines(self) -> list[str]:
        return [given["d"] for given in self.having("line")]


def page(of: Report) -> Page:
    return Page(render_report(of))


def strokes(path: str) -> int:
    return path.count("M")


FAILURES = [
    FailureGroup("content_filtered", "nsfw", 9, False, "sku-77", "a prompt", "Flagged by the checker."),
    FailureGroup("server_error", "503x", 3, True, "sku-12", "another prompt", "Upstream reset."),
]


def test_asks_nothing_of_any_network() -> None:
    of = report([bucket(0), bucket(10)], failures=FAILURES, tiles=[tile(1)], failed=12)
    markup = render_report(of)
    shown = Page(markup)

    for tag, given in shown.tags:
        assert tag not in {"script", "iframe", "object", "embed", "base", "form"}
        assert not any(name.startswith("on") for name in given)
        for name in ("src", "href", "xlink:href", "srcset", "poster", "action"):
            if name in given:
                assert given[name].startswith(("data:image/", "#")), given
    assert "@import" not in markup
    assert "url(" not in markup
    policies = [m["content"] for m in shown.named("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    assert len(policies) == 1
    assert "default-src 'none'" in policies[0]
    assert "http" not in policies[0]


def test_every_link_leads_somewhere_in_the_page() -> None:
    shown = page(report([bucket(0)]))
    places = {given["id"] for _, given in shown.tags if "id" in given}
    links = {link["href"].removeprefix("#") for link in shown.named("a")}
    assert links
    assert links <= places


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({}, "All 1,632 images are done."),
        ({"done": 1, "unique": 1}, "The one image is done."),
        ({"done": 9988, "unique": 10000, "failed": 12}, "9,988 of 10,000 images are done; 12 failed."),
        (
            {"done": 6000, "unique": 10000, "pending": 4000, "stopped": "The API refused the key: No."},
            "Stopped early: The API refused the key: No. 4,000 pending; resume with run id blue-heron.",
        ),
        (
            {"done": 6000, "unique": 10000, "pending": 4000, "stopped": "Interrupted"},
            "Stopped early: Interrupted. 4,000 pending; resume with run id blue-heron.",
        ),
        (
            {"done": 6, "unique": 10, "pending": 4},
            "6 of 10 images are done; 4 pending: resume with run id blue-heron.",
        ),
        ({"done": 0, "unique": 0, "rows": 8}, "No row of the catalog became a job."),
        ({"done": 0, "unique": 0, "rows": 0}, "The catalog is empty."),
    ],
)
def test_says_in_a_sentence_how_the_run_stands(given: dict[str, Any], sentence: str) -> None:
    assert sentence in page(report(**given)).text


def test_headline_numbers() -> None:
    text = page(report(p95_latency_s=6.07, p50_latency_s=3.41, error_rate=0.0012, failed=2)).text
    for words in ("300", "0.12%", "6.07 s", "p50 3.41 s", "$4.32", "$0.0027 per image", "$0.25"):
        assert words in text


@pytest.mark.parametrize(
    ("usd", "words"),
    [(0.0027, "$0.0027"), (0.00275, "$0.00275"), (0.0, "$0.00"), (0.35, "$0.35"), (12.341, "$12.34")],
)
def test_money_keeps_at_least_two_significant_digits(usd: float, words: str) -> None:
    text = page(report(cost_usd=usd, generated=1)).text
    assert re.search(rf"Total cost{re.escape(words)}(?!\d)", text)


def test_one_point_a_bucket_and_chart() -> None:
    shown = page(report([bucket(10 * i) for i in range(37)]))
    assert len(shown.having("point")) == 37 * CHARTS
    charts = [given for given in shown.named("svg") if given.get("role") == "img"]
    assert len(charts) == CHARTS
    assert all(given["aria-label"] for given in charts)
    assert [strokes(line) for line in shown.lines()] == [1] * CHARTS


def test_points_tell_their_time_and_value() -> None:
    text = page(report([bucket(0), bucket(10, failed=5, error_rate=0.0909)])).text
    assert "14:02:20 · 9.09%, 5 of 55 failed" in text
    assert "14:02:10 · p95 4.00 s, p50 2.00 s" in text


def test_lines_break_where_the_run_paused() -> None:
    seconds = [0, 10, 20, 500, 510]
    shown = page(report([bucket(second) for second in seconds]))
    assert [strokes(line) for line in shown.lines()] == [2] * CHARTS
    assert len(shown.having("pause")) == CHARTS
    assert len(shown.having("point")) == len(seconds) * CHARTS


def test_buckets_in_which_nothing_finished_have_points_but_no_values() -> None:
    nothing = bucket(
        10, images=0, images_per_minute=0.0, p50_latency_s=None, p95_latency_s=None, concurrency=None
    )
    shown = page(report([bucket(0), nothing, bucket(20)]))
    throughput, errors, latency, cost, concurrency = map(strokes, shown.lines())
    assert (throughput, cost) == (1, 1)
    assert (errors, latency, concurrency) == (2, 2, 2)
    assert len(shown.having("point")) == 3 * CHARTS


def test_bars_only_where_there_were_429s() -> None:
    assert len(page(report([bucket(0, rate_limited=0), bucket(10, rate_limited=4)])).having("bar")) == 1
    assert not page(report([bucket(0, rate_limited=0)])).having("bar")


@pytest.mark.parametrize("value", [0.0, 1e-7, 0.37, 3.0, 98.6, 1_234_567.0])
def test_all_is_drawn_inside_the_plot(value: float) -> None:
    one = bucket(
        0, images_per_minute=value, p95_latency_s=value, cost_usd_total=value, error_rate=min(1, value)
    )
    shown = page(report([one, bucket(10)]))
    for circle in shown.having("mark"):
        assert 0 <= float(circle["cy"].rstrip("%")) <= 100
        assert 0 <= float(circle["cx"].rstrip("%")) <= 100


def test_one_bucket() -> None:
    shown = page(report([bucket(0)]))
    assert len(shown.having("point")) == CHARTS
    assert len(shown.having("mark")) == CHARTS - 1
    assert not shown.having("pause")


def test_no_bucket() -> None:
    shown = page(
        replace(report(generated=0, p50_latency_s=None, p95_latency_s=None), started=None, ended=None)
    )
    assert "Nothing was generated in this run." in shown.text
    assert not shown.having("point")
    assert not shown.having("chart")


def test_runs_of_days_and_of_other_time_zones_are_told_in_utc() -> None:
    start = datetime.fromisoformat("2025-11-25T23:00:00-05:00")
    buckets = [bucket(0, bucket_start=start + timedelta(hours=h), bucket_s=3600) for h in range(40)]
    text = page(report(buckets)).text
    assert "26 Nov 04:00:00 ·" in text
    assert "27 Nov" in text


def test_failures_are_shown_with_class_code_example_and_the_words_of_the_api() -> None:
    text = page(report(failures=FAILURES, failed=12, errors={"server_error": 40, "timeout": 1})).text
    for failure in FAILURES:
        assert failure.error_class in text
        assert failure.error_code in text
        assert failure.example_id in text
        assert failure.example_prompt in text
        assert failure.example_message in text
    assert "Permanent" in text
    assert "Retryable" in text
    assert "12 jobs failed" in text
    assert "timeout" in text


def test_without_errors_one_sentence() -> None:
    shown = page(report())
    assert "No job and no request failed." in shown.text
    assert not shown.having("failures")
    assert not shown.having("attempts")


def test_what_was_saved_and_rejected() -> None:
    text = page(report(reused=30, duplicates=60, saved_usd=0.2484)).text
    assert "already in the bucket30$0.0864" in text
    assert "as another row60$0.16" in text
    assert "8 were rejected" in text


def test_what_is_not_known_is_not_said_to_cost_nothing() -> None:
    text = page(report(unanswered=2, unanswered_usd=0.0, cost_source="unknown")).text
    assert "not part of the total2unknown" in text
    assert "Images whose price is not known count as $0.00." in text


def test_files_are_named() -> None:
    text = page(report()).text
    for name in ("jobs", "failed", "rejected", "metrics"):
        assert f"s3://out/cat/runs/blue-heron/{name}.parquet" in text
    assert "s3://out/cat/runs/blue-heron/log.jsonl" in text
    assert "s3://out/cat/manifest.parquet" in text
    bare = page(report(metrics=None, manifest=None)).text
    assert "s3://out/cat/runs/blue-heron/jobs.parquet" in bare


def test_tiles_carry_picture_words_and_address() -> None:
    shown = page(report(tiles=[tile(1), tile(2, thumbnail=b"")]))
    (image,) = shown.named("img")
    assert image["src"].startswith("data:image/jpeg;base64,")
    assert image["loading"] == "lazy"
    assert image["alt"] == "A lighthouse at dusk"
    assert "s3://out/cat/images/1.png" in shown.text
    assert "1024 \u00d7 768" in shown.text


def test_variants_of_a_row_stand_side_by_side() -> None:
    tiles = [tile(2, row=9, variant=1), tile(1, row=4, variant=2, varied="sketch · 512x512")]
    shown = page(report(tiles=[tile(1, row=4, varied="photo"), tiles[1], tiles[0]], variants=2))
    sets = shown.having("set")
    assert [given["aria-label"] for given in sets] == ["Variants of sku-1", "Variants of sku-2"]
    assert "1 · photo" in shown.text
    assert "2 · sketch · 512x512" in shown.text
    assert "Each row has 2 pictures" in shown.text


HOSTILE = '</title></style><script>alert(\'1\')</script>" onerror="x" {{ 7 * 7 }} <img src=http://e.vil/>'


def test_hostile_text_stays_text() -> None:
    of = replace(
        report(
            [bucket(0)],
            failures=[FailureGroup(HOSTILE, HOSTILE, 1, True, HOSTILE, HOSTILE, HOSTILE)],
            tiles=[tile(1, HOSTILE, id=HOSTILE, uri=HOSTILE)],
            run_id=HOSTILE,
            stopped=HOSTILE,
            errors={HOSTILE: 3},
            manifest=HOSTILE,
            metrics=HOSTILE,
        ),
        catalog=HOSTILE,
        provider=HOSTILE,
        model=HOSTILE,
        output=HOSTILE,
    )
    shown = page(of)
    assert not shown.named("script")
    assert len(shown.named("img")) == 1
    assert not any("onerror" in given for _, given in shown.tags)
    assert shown.text.count(HOSTILE) > 10
    assert shown.named("img")[0]["alt"] == HOSTILE


def test_invisible_and_turning_characters_are_spelled_out() -> None:
    hostile = "a\u202eb\x00c\x1b[31md\u2066e\ud800f\u200bg\x85h"
    markup = render_report(report(tiles=[tile(1, hostile)], stopped=hostile, errors={hostile: 1}))
    markup.encode("utf-8")
    for character in "\u202e\x00\x1b\u2066\u200b\x85":
        assert character not in markup
    assert "a⟨U+202E⟩b⟨U+0000⟩c" in Page(markup).text


def test_scripts_that_need_joiners_keep_them() -> None:
    prompt = "\u0646\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645 \U0001f469\u200d\U0001f680"
    assert page(report(tiles=[tile(1, prompt)])).named("img")[0]["alt"] == prompt


def test_long_prompts_are_cut() -> None:
    shown = page(report(tiles=[tile(1, "long " * 4000), tile(2, "y" * 20_000), tile(3, " " * 5000 + "z")]))
    assert max(len(image["alt"]) for image in shown.named("img")) <= 301
    assert all(image["alt"].endswith("…") for image in shown.named("img"))
    assert len(shown.text) < 6000


def test_a_full_report_is_small() -> None:
    buckets = [bucket(10 * i) for i in range(240)]
    tiles = [tile(i, "y" * 20_000) for i in range(60)]
    assert len(JPEG) > 8000
    shown = render_report(report(buckets, failures=FAILURES, tiles=tiles))
    assert len(shown.encode()) < 3_000_000
    assert len(Page(shown).having("point")) == 240 * CHARTS
