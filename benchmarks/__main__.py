"""Runs benchmarks one after another; each prints its tables, and says in its own file what it measures.

    python -m benchmarks [NAME ...]

A NAME is a file here, such as ``kills`` or ``faults``. Without any, all of them: allow several hours.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SHARED = {
    *("__main__", "workshop", "side_by_side", "process_tree"),
    *("recording", "emulator_process", "mutation"),
}
"""What is here and measures nothing by itself."""


def main(chosen: list[str]) -> int:
    """Run the chosen ones; 0 where all of them ended well."""
    found = sorted(file.stem for file in Path(__file__).parent.glob("*.py") if file.stem not in SHARED)
    if unknown := [name for name in chosen if name not in found]:
        print(f"There is no benchmark {', '.join(unknown)}; there are: {', '.join(found)}.", file=sys.stderr)
        return 2
    codes = []
    for name in chosen or found:
        print(f"\n# {name}\n", flush=True)
        codes.append(subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=False).returncode)
    return int(any(codes))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
