"""Vendors' image APIs on loopback, for demonstrations, tests and benchmarks."""

from __future__ import annotations

from emulator.server import Emulator
from emulator.settings import Settings, SettingsError

__all__ = ["Emulator", "Settings", "SettingsError"]
