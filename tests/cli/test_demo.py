"""The demo, as a new user runs it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.conftest import Command


@pytest.mark.slow
def test_the_demo_leaves_pictures_and_a_report(command: Callable[..., Command], tmp_path: Path) -> None:
    done = command("demo", "--images", "60")

    assert done.code == 0, done.err
    folder = tmp_path / "imagemill-demo"
    assert str(folder / "report.html") in done.out
    assert "images/min" in done.out
    assert "The emulated API charged" in done.out
    rows = pq.read_table(folder / "manifest.parquet").to_pylist()
    assert [row["status"] for row in rows].count("rejected") == 3
    assert len({row["uri"] for row in rows if row["uri"]}) < len(rows) - 3
    for picture in (folder / "images").iterdir():
        with Image.open(picture) as image:
            image.load()
    assert "<svg" in (folder / "report.html").read_text()
    assert pq.read_table(folder / "records" / "metrics.parquet").num_rows > 0
