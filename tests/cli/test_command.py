"""The command, as a process of its own."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from imagemill.cli.command import main
from imagemill.emulator import Emulator
from tests.conftest import Command, Place
from tests.patience import PATIENCE_S


def arguments(place: Place, emulated: Emulator, *more: str) -> list[str]:
    return [
        *("--provider", "together", "--base-url", emulated.base_url),
        *("--output", place.uri, "--s3-endpoint-url", place.s3.endpoint_url),
        *("--width", "256", "--height", "256"),
        *more,
    ]


def test_run_prints_one_json_object_and_nothing_else(
    place: Place,
    emulator: Callable[..., Emulator],
    catalog: Callable[..., str],
    command: Callable[..., Command],
) -> None:
    path = catalog(sku=[1, 2, 3], text=["a", "b", "a"])
    columns = ("--column", "id=sku", "--column", "prompt=text")
    done = command("run", path, *arguments(place, emulator(), *columns, "--json"))

    assert done.code == 0, done.err
    assert "Traceback" not in done.err
    summary = done.json
    expected = {
        "run_id", "rows", "rejected", "unique", "duplicates", "done", "failed", "pending", "generated",
        "reused", "images_per_minute", "error_rate", "p50_latency_s", "p95_latency_s", "cost_usd",
        "saved_usd", "requests", "rate_limited", "wall_s", "manifest", "metrics", "report",
    }  # fmt: skip
    assert expected <= set(summary)
    assert (summary["rows"], summary["unique"], summary["duplicates"]) == (3, 2, 1)
    assert [row["id"] for row in place.table("manifest.parquet")] == ["1", "2", "3"]


def test_failed_jobs_exit_with_1_and_a_person_gets_a_table(
    place: Place,
    emulator: Callable[..., Emulator],
    catalog: Callable[..., str],
    command: Callable[..., Command],
) -> None:
    given = arguments(place, emulator(), "--run-id", "r")
    done = command("run", catalog(prompt=["a", "b #fault:400"]), *given)
    assert done.code == 1
    for text in ("images/min", "error rate", "p95 latency", "total cost", "--failed", place.uri):
        assert text in done.out
    assert "Traceback" not in done.out + done.err
    retried = command("retry-failed", "r")
    assert retried.code == 1
    assert "The 1 failed image of run r would fail again with the same input" in retried.err


@pytest.mark.parametrize("form", [("estimate",), ("run", "--dry-run")])
def test_an_estimate_asks_nothing_of_the_api(
    place: Place,
    emulator: Callable[..., Emulator],
    catalog: Callable[..., str],
    command: Callable[..., Command],
    form: tuple[str, ...],
) -> None:
    emulated = emulator()
    path = catalog(prompt=["a", "b", "a", None])
    asks = {"judge": "https://judge.test", "judge-model": "any"}
    asks |= {"judge-usd-per-million-input-tokens": "1", "judge-usd-per-million-output-tokens": "5"}
    judge = [word for name, value in asks.items() for word in (f"--{name}", value)]
    done = command(
        form[0], path, *form[1:], *arguments(place, emulated, *judge, "--json"), TOGETHER_API_KEY=""
    )

    assert done.code == 0, done.err
    found = done.json
    assert found["judge_usd"] == 2 * (2000 * 1 + 200 * 5) / 1e6
    assert (found["rows"], found["rejected"], found["unique"], found["duplicates"]) == (4, 1, 2, 1)
    assert found["cost_usd"] == pytest.approx(2 * 0.0027 * 256 * 256 / 1e6)
    assert found["seconds"] > 0
    assert emulated.stats()["generation_requests"] == 0
    assert place.objects() == {}


BAD_INPUT: dict[str, tuple[dict[str, Any], str]] = {
    # what is wrong: (changes, what the sentence says)
    "missing file": ({"catalog": "nowhere.parquet"}, "'nowhere.parquet' does not exist"),
    "one slash after s3:": ({"catalog": "s3:/bucket/x"}, "is neither a path on this machine nor"),
    "capital S3": ({"catalog": "S3://bucket/x"}, "nor of the form s3://BUCKET/PATH"),
    "catalog elsewhere": ({"catalog": "https://x/y.parquet"}, "nor of the form s3://BUCKET/PATH"),
    "home on S3": ({"environment": {"IMAGEMILL_HOME": "s3://b/home"}}, "'s3://b/home' is on S3"),
    "home not UTF-8": ({"environment": {"IMAGEMILL_HOME": "x\udce9"}}, "is not UTF-8: set IMAGEMILL_HOME"),
    "catalog not UTF-8": ({"catalog": "caf\udce9.parquet"}, r"CATALOG: 'caf\xe9.parquet' is not UTF-8"),
    "option not UTF-8": (
        {"more": ["--prompt-template", "caf\udce9 {{ prompt }}"]},
        r"--prompt-template: 'caf\xe9 {{ prompt }}' is not UTF-8",
    ),
    "not Parquet": ({"catalog": "TEXT"}, "is not a Parquet file"),
    "no prompt column": ({"catalog": "CAPTIONS"}, "no column 'prompt'; the closest is 'caption'"),
    "column names nothing": ({"more": ["--column", "id=skuu"]}, "no column 'skuu'"),
    "unknown column name": ({"more": ["--column", "size=prompt"]}, "'size' is not one of"),
    "bucket missing": ({"output": "s3://no-such-bucket/x"}, "'no-such-bucket' at http"),
    "bucket refused": ({"environment": {"AWS_SECRET_ACCESS_KEY": "wrong"}}, "refused these credentials"),
    "no credentials": (
        {"environment": {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}},
        "no S3 credentials",
    ),
    "not an s3 output": ({"output": "/tmp/x"}, "is not of the form s3://BUCKET/PREFIX"),
    "endpoint away": ({"endpoint": "http://127.0.0.1:9"}, "cannot be reached"),
    "no API key": ({"environment": {"TOGETHER_API_KEY": ""}}, "environment variable TOGETHER_API_KEY"),
    "unknown provider": ({"more": ["--provider", "midjourney"]}, "no provider 'midjourney'"),
    "bad base url": ({"more": ["--base-url", "ftp://x"]}, "is not an http or https address"),
    "unreachable store": ({"more": ["--store", "sqlite:/proc/none/x.db"]}, "cannot be opened"),
    "unknown store": ({"more": ["--store", "mongodb://x"]}, "no job store 'mongodb'"),
    "bad number": ({"more": ["--concurrency", "many"]}, "--concurrency 'many' is neither auto nor"),
    "bad width": ({"more": ["--width", "0"]}, "--width '0'"),
    "bad run id": ({"more": ["--run-id", "../x"]}, "--run-id '../x'"),
    "seed too large": ({"more": ["--seed-policy", "fixed:9999999999"]}, "a seed is at most 4,294,967,295"),
    "empty part in the prefix": ({"output": "s3://tests/a//b"}, "holds an empty part"),
    "number sign in the prefix": ({"output": "s3://tests/shop#A"}, "holds a number sign"),
    "question mark in the prefix": ({"output": "s3://tests/shop?A"}, "holds a question mark"),
    "key with a line break": ({"environment": {"TOGETHER_API_KEY": "sk-a\nbcdef"}}, "holds a line break"),
    "quoted key": ({"environment": {"TOGETHER_API_KEY": "\u201csk-abcdef\u201d"}}, "holds a quotation mark"),
    "no such route": (
        {"more": ["--give-up", "nobody"], "endpoint": "http://127.0.0.1:9"},
        "The run has no route 'nobody' to give up: it is over one API.",
    ),
    "unknown option": ({"more": ["--speed", "9"]}, "--speed 9. See imagemill run --help."),
}  # fmt: skip


@pytest.mark.usefixtures("prefect_server")
@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_one_sentence_and_exit_code_2(
    place: Place,
    emulator: Callable[..., Emulator],
    catalog: Callable[..., str],
    tmp_path: Path,
    own_home: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    case: str,
) -> None:
    changes, sentence = BAD_INPUT[case]
    emulated = emulator()
    (tmp_path / "text.parquet").write_text("no Parquet at all")
    files = {
        "TEXT": str(tmp_path / "text.parquet"),
        "CAPTIONS": catalog("captions.parquet", caption=["a"], sku=[1]),
        "GOOD": catalog("good.parquet", prompt=["a"], sku=[1]),
    }
    path = files.get(changes.get("catalog", "GOOD"), changes.get("catalog", ""))
    given = ["run", path, *arguments(place, emulated)]
    if "output" in changes:
        given += ["--output", changes["output"]]
    if "endpoint" in changes:
        given += ["--s3-endpoint-url", changes["endpoint"]]
    environment = {"AWS_EC2_METADATA_DISABLED": "true", "HOME": str(tmp_path)}
    for name, value in {**environment, **changes.get("environment", {})}.items():
        monkeypatch.setenv(name, value)

    try:
        code = main([*given, *changes.get("more", []), "--json"])
    except SystemExit as exit_:  # as argparse ends
        code = exit_.code

    printed = capsys.readouterr()
    assert (code, printed.out) == (2, "")
    assert sentence in printed.err
    assert printed.err.startswith("imagemill: ")
    assert printed.err.count("\n") == 1
    assert place.objects() == {}
    assert not list(own_home.glob("runs/*/*"))
    assert emulated.stats()["generation_requests"] == 0


@pytest.mark.parametrize(
    "given", [["resume"], ["retry-failed"], ["review"], ["reconcile"], ["compare", "../other"]], ids=" ".join
)
def test_a_run_id_is_no_path(given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*given, "../mine"]) == 2
    said = capsys.readouterr().err
    assert "There is no run '../" in said


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (["runs", "r", "--id", "\udcff"], r"--id: '\xff' is not UTF-8"),
        (["calibrate", "--plot", "\udcff"], r"--plot: '\xff' is not UTF-8"),
        (["calibrate", "--plot", "s3://b/plot.html"], "--plot: 's3://b/plot.html' is on S3"),
        (["demo", "--folder", "S3:/b"], "--folder: 'S3:/b' is on S3"),
    ],
    ids=str,
)
def test_an_argument_that_cannot_be_used_is_named(
    given: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(given)
    said = capsys.readouterr().err
    assert said.startswith("imagemill: argument --")
    assert sentence in said


def test_a_disk_that_is_only_to_be_read_is_one_sentence(
    place: Place,
    emulator: Callable[..., Emulator],
    catalog: Callable[..., str],
    command: Callable[..., Command],
    make_read_only: Callable[[], None],
    tmp_path: Path,
    own_home: Path,
) -> None:
    run = arguments(place, emulator(pictures="full"), "--run-id", "r", "--quality", "all")
    assert command("run", catalog(prompt=["a flat one #fault:flat", "b"]), *run).code == 0
    (bill := tmp_path / "bill.csv").write_text("id,cost_usd\nelse,1\n")
    make_read_only()
    for asks in ("review r", "compare r r", f"reconcile r --from {bill}", "forget r"):
        done = command(*asks.split())
        assert (done.code, done.out) == (2, ""), asks
        assert done.err == (
            f"imagemill: Cannot write to the run's folder {own_home / 'runs/r'} (Read-only file system). Make"
            " room there, or set IMAGEMILL_HOME to a folder that can be written.\n"
        )


def test_a_limit_on_an_unknown_price_leaves_no_run_behind(
    place: Place,
    emulator: Callable[..., Emulator],
    catalog: Callable[..., str],
    command: Callable[..., Command],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = catalog(prompt=["a"])
    given = [*arguments(place, emulator(), "--run-id", "r", "--max-cost", "1"), "--provider", "openai"]
    monkeypatch.setenv("OPENAI_API_KEY", "a-key")
    refused = command("run", path, *given)
    assert (refused.code, refused.out) == (2, "")
    assert "--max-cost needs a price" in refused.err
    assert command("runs", "--json").json == {"runs": []}
    assert command("run", path, *given, "--usd-per-image", "0.01").code == 0


def test_a_command_that_a_run_prints_goes_on_with_it(
    place: Place,
    emulator: Callable[..., Emulator],
    catalog: Callable[..., str],
    command: Callable[..., Command],
    tmp_path: Path,
) -> None:
    emulated = emulator()
    path = catalog(prompt=["a", "b", "c #fault:500*2", "d"])
    given = arguments(place, emulated, "--run-id", "r", "--max-cost", "0.0003", "--concurrency", "1")
    stopped = command("run", path, *given)
    assert stopped.code == 3
    assert "Resume with: imagemill resume r --max-cost MORE\n" in stopped.err

    retried = command("retry-failed", "r", "--max-cost", "0.0003")
    assert "No image of run r has failed: this goes on with the 3 that are pending." in retried.err

    elsewhere = {"IMAGEMILL_HOME": str(tmp_path / "elsewhere")}
    where = f" --output {place.uri} --s3-endpoint-url {place.s3.endpoint_url}"
    shown = command("runs", "r", *where.split(), **elsewhere).out
    assert f"Resume with: imagemill resume r{where} --max-cost MORE\n" in shown
    more = ("--max-cost", "0.0004", "--base-url", emulated.base_url, "--concurrency", "1")
    stopped = command("resume", "r", *where.split(), *more, **elsewhere)
    again = f" --base-url {emulated.base_url}{where} --concurrency 1 --max-cost"
    assert (stopped.code, f"Resume with: imagemill resume r{again} MORE\n" in stopped.err) == (3, True)
    done = command("resume", "r", *again.split(), "1", **elsewhere)
    assert done.code == 1, done.err
    retry = f"imagemill retry-failed r --base-url {emulated.base_url}{where} --concurrency 1 --max-cost 1"
    assert f"Retry them: {retry} (--permanent" in done.out
    assert f"See why: imagemill runs r --failed{where}\n" in done.out
    (tmp_path / "elsewhere/runs/r/failed.parquet").write_bytes(b"PAR1")
    damaged = command("runs", "r", "--failed", **elsewhere)
    assert (damaged.code, "The file failed.parquet of run 'r' is damaged (" in damaged.err) == (2, True)
    retried = command(*retry.split()[1:], **elsewhere)
    assert (retried.code, "imagemill:" in retried.err) == (0, False)
    assert "No image of run r has failed: there is nothing to retry." in (
        command(*retry.split()[1:], **elsewhere).err
    )


@pytest.mark.slow
def test_a_run_id_stands_for_one_run(
    place: Place,
    emulator: Callable[..., Emulator],
    catalog: Callable[..., str],
    command: Callable[..., Command],
) -> None:
    emulated = emulator()
    given = arguments(place, emulated, "--run-id", "mine")
    assert command("run", catalog("one.parquet", prompt=["a"]), *given).code == 0
    other = command("run", catalog("two.parquet", prompt=["b"]), *given)
    assert other.code == 2
    assert "Run 'mine' exists with the catalog" in other.err
    unknown = command("resume", "yours")
    assert unknown.code == 2
    assert "There is no run 'yours' on this machine" in unknown.err


@pytest.mark.parametrize("loaded", ["argparse", "rich.table"])
def test_ctrl_c_while_the_command_loads_ends_it_without_a_traceback(loaded: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-X", "importtime", "-m", "imagemill", "models"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        pipesize=4096,  # soon full of modules' names: it loads no further while nobody reads them
    ) as process:
        assert process.stderr is not None
        while loaded not in (line := process.stderr.readline()):
            assert line
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == -signal.SIGINT  # for a shell, 130
    assert "Traceback" not in err


def test_a_demo_whose_terminal_is_closed_leaves_nothing_behind(
    start_command: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    process = start_command("demo", TMPDIR=str(temporary))
    wait_for(lambda: any(temporary.glob("imagemill-demo-*")), process)
    process.send_signal(signal.SIGHUP)
    _, err = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, "Traceback" in err) == (3, False)
    assert not list(temporary.glob("imagemill-demo-*"))


@pytest.mark.slow
def test_ctrl_c_in_a_calibration_says_that_it_may_have_cost(
    emulator: Callable[..., Emulator], start_command: Callable[..., subprocess.Popen[str]]
) -> None:
    emulated = emulator(latency_s=0.2)
    asked = ("--provider", "together", "--base-url", emulated.base_url, "--images", "5000")
    process = start_command("calibrate", *asked)
    wait_for(lambda: emulated.bill()["images"] >= 5, process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=PATIENCE_S)
    said = "imagemill: Interrupted: no limit was stored. Images that were asked for may be charged.\n"
    assert (process.returncode, out, err) == (3, "", said)


@pytest.mark.slow
def test_ctrl_c_keeps_what_is_finished_and_says_how_to_resume(
    place: Place,
    emulator: Callable[..., Emulator],
    catalog: Callable[..., str],
    start_command: Callable[..., subprocess.Popen[str]],
    command: Callable[..., Command],
) -> None:
    emulated = emulator(latency_s=0.3)
    path = catalog(prompt=[f"p{n}" for n in range(400)])
    process = start_command("run", path, *arguments(place, emulated, "--run-id", "broken-off"))
    wait_for(lambda: emulated.bill()["images"] >= 30, process)

    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=PATIENCE_S)

    assert process.returncode == 3
    assert "imagemill resume broken-off" in err
    assert "Traceback" not in err
    finished = len([name for name in place.objects() if name.startswith("images/")])
    assert 30 <= finished < 400
    assert emulated.bill()["images"] == finished  # what was in flight came home

    done = command("resume", "broken-off", "--concurrency", "40", "--json")
    assert done.code == 0, done.err
    assert done.json["done"] == 400
    assert emulated.bill()["images"] == 400


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Poll a condition in the world outside until it holds, or the process ends."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)
