"""Takes the screenshots of deploy-it.md again, by running the UI tests: python docs/screenshots.py."""

import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

NAMES = ("nightly", "form", "run", "approval", "cancelled")
DOCS = Path(__file__).parent


def main() -> None:
    """Run the tests and keep their screenshots, with a small palette."""
    with tempfile.TemporaryDirectory() as name:
        command = [sys.executable, "-m", "pytest", "-q", "tests/flows/test_ui.py", f"--basetemp={name}/tests"]
        subprocess.run(command, cwd=DOCS.parent, check=True)  # noqa: S603 - our own tests
        for shot in NAMES:
            # Not by a glob: pytest puts a link beside the folder.
            with Image.open(Path(name, "tests", "office0", "screenshots", f"{shot}.png")) as picture:
                picture.convert("RGB").quantize(128).save(DOCS / f"ui-{shot}.png", optimize=True)


if __name__ == "__main__":
    main()
