"""The code blocks of README and docs: each is run against real parts, or named here with its reason."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pyarrow as pa
import pytest
import yaml

from imagemill.cli.parser import parser
from imagemill.emulator import Emulator
from imagemill.flows.build_dashboard import build_dashboard
from imagemill.flows.generate_catalog import generate_catalog
from imagemill.flows.preview_catalog import preview_catalog
from imagemill.flows.refresh_catalog import refresh_catalog
from tests.conftest import Place
from tests.docs.test_docs import PAGES, ROOT
from tests.patience import PATIENCE_S

NOT_RUN = {
    # (page, what the block says): why it is not run here, and who runs it
    ("README.md", "imagemill demo"): "it installs packages; tests/test_image.py runs the demo",
    ("README.md", "pytest --cov"): "it installs packages and runs this; .ci/run runs it as it stands",
    ("README.md", "prefect worker start"): "a worker stays; tests/flows/test_deployment.py runs one once",
    (
        "README.md",
        "prefect server start",
    ): "it installs packages, a server stays: tests/flows/test_ui.py",
    ("deploy-it.md", "prefect server start"): "as in README.md",
    ("deploy-it.md", "prefect worker start"): "as in README.md",
    ("deploy-it.md", "prefect deployment run"): "it needs a worker; tests/flows/test_deployment.py has one",
    ("deploy-it.md", "run_deployment("): "it needs a worker; tests/flows/test_deployment.py has one",
    ("deploy-it.md", "imagemill emulator\n"): "two servers stay, as in most tests",
    ("several-accounts.md", "--route together"): "it needs a block; tests/cli/test_routes.py runs over two",
    (
        "when-things-fail.md",
        "resume RUN_ID --output",
    ): "it needs a lost machine; tests/runs/test_lost_machine.py has one",
    ("containers.md", "docker build"): "it needs a daemon; tests/flows/test_containers.py starts one",
    ("containers.md", "--base-job-template"): "as above, and a worker stays",
    ("operations.md", "imagemill forget"): "tests/cli/test_forget.py runs it",
    ("operations.md", "2012-10-17"): "a policy; tests/bucket/test_permissions.py tries it",
    ("scale-out.md", "--task-runner dask"): "it needs a cluster; tests/cluster/test_dask.py has one",
}

STANDS_FOR = {
    # what a block says: what is run instead
    "=...": "",  # export NAME=... leaves the test's own key in place
    "--provider together": "--provider together --base-url {api}",
    'api="together"': 'api={{"provider": "together", "base_url": "{api}"}}',
    "s3://images/products": "{output}",
    "s3://YOUR-BUCKET/catalog": "{output}",
    ". .venv/bin/activate": "",
    "RUN_ID": "a-run",
}

PRODUCTS = {
    "sku": ["sku-07841", "sku-07842", "sku-07843"],
    "prompt": ["an owl", "a tram", "an owl"],
    "title": ["Mug", "Chair", "Lamp"],
    "colour": ["Red", "oak", "BLUE"],
}
A_RUN = {**PRODUCTS, "prompt": ["an owl", "a tram #fault:400", "a fox"]}
"""What the run has behind it that the pages call RUN_ID."""


@dataclass(frozen=True, slots=True)
class Block:
    page: str
    language: str
    text: str

    @property
    def reasons(self) -> list[str]:
        return [why for (page, words), why in NOT_RUN.items() if page == self.page and words in self.text]

    def __str__(self) -> str:
        return f"{self.page}: {self.text.splitlines()[0][:60]}"


BLOCKS = [
    Block(page.name, language, text)
    for page in PAGES
    for language, text in re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)
]
RUN = [
    pytest.param(block, id=str(block), marks=[pytest.mark.slow] if "imagemill run " in block.text else [])
    for block in BLOCKS
    if block.language and not block.reasons
]


def test_the_blocks_that_are_not_run_are_there() -> None:
    for page, words in NOT_RUN:
        assert [words in block.text for block in BLOCKS if block.page == page].count(True) == 1, words


@pytest.mark.slow
@pytest.mark.parametrize("block", RUN)
def test_a_block_runs(
    block: Block,
    prefect_server: str,
    place: Place,
    emulator: Callable[..., Emulator],
    catalog: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    emulated = emulator()
    catalog("products.parquet", **PRODUCTS)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AWS_ENDPOINT_URL", place.s3.endpoint_url)
    monkeypatch.setenv("ALERT_WEBHOOK_URL", "http://127.0.0.1:9/")
    if "RUN_ID" in block.text:
        generate_catalog(
            catalog={"path": catalog("a-run.parquet", **A_RUN), "columns": {"id": "sku"}},
            output=place.uri,
            api={"provider": "together", "base_url": emulated.base_url},
            execution={"run_id": "a-run"},
        )
    text = block.text
    for said, instead in STANDS_FOR.items():
        text = text.replace(said, instead.format(api=emulated.base_url, output=place.uri))

    if block.language == "python":
        exec(compile(text, str(block), "exec"), {})
    elif block.language == "sh":
        _run_in_shell(text, prefect_server)
    else:
        assert block.language == "yaml", "say sh, python or yaml, or name the block in NOT_RUN"
        yaml.safe_load(text)

    if "s3://images/products" in block.text:
        rows = place.table("manifest.parquet")
        assert [(row["id"], row["status"]) for row in rows] == [(sku, "done") for sku in PRODUCTS["sku"]]


def _run_in_shell(text: str, prefect_server: str) -> None:
    here = str(Path(sys.executable).parent)
    environment = {
        **os.environ,
        "PATH": f"{here}{os.pathsep}{os.environ['PATH']}",
        "PREFECT_API_URL": prefect_server,
    }
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text],
        env=environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_are_understood(page: Path) -> None:
    """All of them, those in a sentence or in a block that is not run too: by the parsers of the commands."""
    for text in _shell_on(page):
        for program, *words in _commands(text):
            if program == "prefect":
                usage, options = _prefect_usage(words)
                if "COMMAND" in usage:  # then what follows is an unknown word, or none as in "prefect deploy"
                    assert all(word.startswith("-") for word in words[len(usage) - 1 :][:1]), words
                assert {word for word in words if word.startswith("--")} <= options, words
            elif words[:1] != ["emulator"]:
                _parsed(words)


def _shell_on(page: Path) -> list[str]:
    inline = re.findall(r"`((?:imagemill|prefect) [^`]+)`", page.read_text())
    return [*inline, *[block.text for block in BLOCKS if block.page == page.name and block.language == "sh"]]


def _commands(text: str) -> Iterator[list[str]]:
    """The commands of imagemill and prefect in a piece of shell, in words."""
    text = re.sub(r"\b(run|estimate|resume|retry-failed) …", r"\1 NAME", text.strip()).removesuffix(" …")
    text = text.replace("…", "place").replace("\\\n", " ")
    for line in text.splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="&|;")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if set(word) <= set("&|;"):
                if words and (program := Path(words[0]).name) in {"imagemill", "prefect"}:
                    yield [program, *words[1:]]
                words = []
            else:
                words.append(word)


def _parsed(words: list[str]) -> None:
    code = None
    named = [*words, "--help"] if len(words) == 1 else words  # a sentence may name a command alone
    try:
        parser(named).parse_args(named)
    except SystemExit as exit_:  # as --help ends, and what is refused
        code = exit_.code
    assert not code, words


def _prefect_usage(words: list[str]) -> tuple[list[str], set[str]]:
    """What prefect's help says of a command: its words, COMMAND after them if others follow; its options."""
    shown = _prefect_helps()[shlex.join(words)]
    usage = shown.splitlines()[0].removeprefix("Usage: prefect ").split()
    return usage[: usage.index("[OPTIONS]")], set(re.findall(r"--[a-z][a-z-]+", shown))


@cache
def _prefect_helps() -> dict[str, str]:
    """The help of each of prefect's commands on the pages, by the command; one process for all."""
    texts = [text for page in PAGES for text in _shell_on(page)]
    commands = [
        shlex.join(words) for text in texts for program, *words in _commands(text) if program == "prefect"
    ]
    shown = subprocess.run(
        [sys.executable, "-c", _SHOW_HELPS, *commands],
        env={**os.environ, "COLUMNS": "250"}, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    helps: dict[str, str] = json.loads(shown)
    return helps


_SHOW_HELPS = """
import contextlib, io, json, shlex, sys
from prefect.cli import app

helps = {}
for command in sys.argv[1:]:
    sys.argv = ["prefect", *shlex.split(command), "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as shown, contextlib.suppress(SystemExit):
        app()
    helps[command] = shown.getvalue()
print(json.dumps(helps))
"""


WRITTEN_ELSEWHERE = {
    "runs/a/reconciliation.parquet",  # tests/cli/test_reconcile.py
    "runs/a/model.json",
    "runs/a/review.html",  # tests/quality/test_review_choices.py
    "images/0a/0a1b.2.png",
}


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_server")
def test_the_listing_of_the_bucket_is_whole(
    place: Place, emulator: Callable[..., Emulator], catalog: Callable[..., str]
) -> None:
    [listing] = [block.text for block in BLOCKS if block.text.startswith("images/<")]
    names = [
        Path(path).parent / name
        for path, *others in (re.split(r",? +", line.split("  ")[0]) for line in listing.splitlines())
        for name in [Path(path).name, *others]
    ]
    patterns = [re.sub(r"<[^>]+>", "[^/]+", re.escape(str(name))) for name in names]
    api = {"provider": "together", "base_url": emulator().base_url}
    for prompts in (["an owl", "a tram", " "], ["an owl", "a fox"]):
        path = catalog(id=[str(number) for number in range(len(prompts))], prompt=prompts)
        refresh_catalog(catalog=path, output=place.settings(copies=True), api=api, prune=True)
    preview_catalog(catalog=pa.table({"prompt": ["an owl"]}), output=place.settings(), api=api, images=1)
    build_dashboard(output=place.settings())

    written = set(place.objects()) | WRITTEN_ELSEWHERE
    unlisted = {name for name in written if not any(re.fullmatch(pattern, name) for pattern in patterns)}
    assert not unlisted
    assert [p for p in patterns if not any(re.fullmatch(p, name) for name in written)] == []
