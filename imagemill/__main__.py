"""``python -m imagemill``."""

import sys

from imagemill.cli.command import main

sys.exit(main())
