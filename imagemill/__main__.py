"""``python -m imagemill``."""

import sys

from imagemill.cli.command import process

sys.exit(process())
