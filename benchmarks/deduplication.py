"""Which of a million keys was seen before: :class:`DigestIndex` beside a dict, pandas, pyarrow and DuckDB.

Each contender numbers the same 1.25 million 128-bit digests (a million distinct ones, a quarter of a million
repeated) in batches of 10,000, in a process of its own: CPU seconds, and memory beyond what its imports take.
``python -m benchmarks.deduplication`` writes deduplication.md.
"""

from __future__ import annotations

import hashlib
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

ROWS, DISTINCT, BATCH = 1_250_000, 1_000_000, 10_000
ROUNDS = 5
SLOW = {"pyarrow_index"}
"""Measured once: some twenty seconds each."""
TABLE = Path(__file__).with_suffix(".md")


def batches() -> Iterator[list[bytes]]:
    """The digests; the last fifth repeats earlier ones."""
    for start in range(0, ROWS, BATCH):
        numbers = (n if n < DISTINCT else (n * 7919) % DISTINCT for n in range(start, start + BATCH))
        yield [hashlib.blake2b(b"%d" % n, digest_size=16).digest() for n in numbers]


def digest_index() -> Callable[[list[bytes]], None]:
    """What a run uses."""
    from imagemill.catalog.digest_index import DigestIndex  # noqa: PLC0415

    index = DigestIndex()
    return lambda digests: void(index.number(b"".join(digests)))


def python_dict() -> Callable[[list[bytes]], None]:
    """The plainest way."""
    seen: dict[bytes, int] = {}

    def number(digests: list[bytes]) -> None:
        for digest in digests:
            seen.setdefault(digest, len(seen))

    return number


def pandas_index() -> Callable[[list[bytes]], None]:
    """Indexes merged as a log-structured merge does, since an Index of pandas cannot grow."""
    import numpy as np  # noqa: PLC0415
    import pandas as pd  # noqa: PLC0415

    levels: list[pd.MultiIndex] = []

    def number(digests: list[bytes]) -> None:
        words = np.frombuffer(b"".join(digests), np.uint64).reshape(-1, 2)
        new = pd.MultiIndex.from_arrays([words[:, 0], words[:, 1]]).unique()
        for level in levels:
            new = new[level.get_indexer(new) < 0]
        while levels and len(levels[-1]) <= len(new):
            new = levels.pop().append(new)
        levels.append(new)

    return number


def pyarrow_index() -> Callable[[list[bytes]], None]:
    """``index_in`` against all chunks so far; its hash table is made anew for each batch."""
    import pyarrow as pa  # noqa: PLC0415
    import pyarrow.compute as pc  # noqa: PLC0415

    chunks: list[pa.Array] = []

    def number(digests: list[bytes]) -> None:
        batch = pc.unique(pa.array(digests, pa.binary(16)))
        known = pa.chunked_array(chunks, pa.binary(16))
        chunks.append(batch.filter(pc.is_null(pc.index_in(batch, known))))

    return number


def duckdb_table() -> Callable[[list[bytes]], None]:
    """An anti join against a table in memory; it tells new digests, and no numbers."""
    import duckdb  # noqa: PLC0415
    import pyarrow as pa  # noqa: PLC0415

    connection = duckdb.connect(config={"threads": 1})
    connection.execute("create table seen (digest blob)")

    def number(digests: list[bytes]) -> None:
        batch = pa.table({"digest": pa.array(digests, pa.binary())})  # noqa: F841 - DuckDB finds it by name
        connection.execute("insert into seen select distinct digest from batch anti join seen using (digest)")

    return number


def void(_: object) -> None:
    """Nothing of it is kept."""


CONTENDERS = (digest_index, python_dict, pandas_index, pyarrow_index, duckdb_table)


def measure(name: str) -> None:
    """Print CPU seconds and MB of one contender."""
    number = {each.__name__: each for each in CONTENDERS}[name]()
    number(next(batches()))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    spent = 0.0
    for digests in batches():
        began = time.process_time()
        number(digests)
        spent += time.process_time() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"{spent:.2f} {(peak - before) / 1024:.0f}")


def main() -> None:
    """Measure all in turn, and write the table."""
    found: dict[str, list[tuple[float, float]]] = {each.__name__: [] for each in CONTENDERS}
    for _ in range(ROUNDS):
        for name, figures in found.items():
            if name in SLOW and figures:
                continue
            command = [sys.executable, "-m", "benchmarks.deduplication", name]
            out = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
            figures.append((float(out[0]), float(out[1])))
            print(name, *out, flush=True)
    lines = ["# Deduplication", "", *(__doc__ or "").strip().splitlines()[2:], ""]
    lines += ["| | CPU seconds: least, median, most | MB at the peak, median |", "|---|---|---|"]
    for name, figures in found.items():
        cpu, memory = sorted(f[0] for f in figures), sorted(f[1] for f in figures)
        shown = f"{cpu[0]:.2f}, {cpu[len(cpu) // 2]:.2f}, {cpu[-1]:.2f}"
        lines.append(f"| {name.replace('_', ' ')} | {shown} | {memory[len(memory) // 2]:.0f} |")
    TABLE.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    measure(sys.argv[1]) if len(sys.argv) > 1 else main()
