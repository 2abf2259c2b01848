"""Vendors' image APIs on loopback, for demonstrations, tests and benchmarks."""

from __future__ import annotations

from imagemill.emulator.server import Emulator
from imagemill.emulator.settings import Settings, SettingsError

__all__ = ["Emulator", "Settings", "SettingsError"]
