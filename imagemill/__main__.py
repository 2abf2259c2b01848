"""``python -m imagemill``."""

import sys

from imagemill.command import main

sys.exit(main())
