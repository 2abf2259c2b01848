"""The rooms of the house: imports point one way, without cycles. The contracts stand in pyproject.toml."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_imports_keep_to_the_contracts() -> None:
    lint_imports = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run(
        [lint_imports, "--no-cache", "--no-logo"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


def test_nothing_private_of_prefect_is_used() -> None:
    private = re.compile(r"\bprefect(\.\w+)*\._|SubprocessASGIServer|server_process|\bos\._exit")
    imported = re.compile(r"from prefect\S* import .*\b_")
    for folder in ("imagemill", "examples"):
        for file in (ROOT / folder).rglob("*.py"):
            for line in file.read_text().splitlines():
                assert not private.search(line), (file, line)
                assert not imported.search(line), (file, line)
