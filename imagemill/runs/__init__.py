"""One run in one process: its folder, its open resources, its recovery after a crash, its summary.

``imagemill.runs(output)`` is also the public function that lists all runs: a subpackage becomes an attribute
of its package as soon as it is imported, so it has to be callable itself.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType


class _Runs(ModuleType):
    def __call__(self, output: object) -> object:
        return import_module("imagemill.runs.frames").runs(output)


sys.modules[__name__].__class__ = _Runs
