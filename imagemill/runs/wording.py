"""Rewrites advice with the command's options into names of settings, for users of Python and forms."""

from __future__ import annotations

import re
from collections.abc import Iterator

from imagemill.settings import GROUPS

_OPTION = re.compile(r"--([a-z][a-z0-9]*(?:-[a-z0-9]+)*)(?: ([A-Za-z_]\w*)=(\w*))?")
_RESUME = re.compile(r"imagemill resume ([A-Za-z0-9._-]*[A-Za-z0-9])")


def in_names_of_settings(text: str) -> str:
    """A text that advises ``--max-cost`` or ``imagemill resume ID``, advising settings instead."""
    text = _RESUME.sub(r"execution.run_id \1 and execution.keep_plan", text)
    return _OPTION.sub(_setting, text)


def _setting(option: re.Match[str]) -> str:
    setting = _SETTINGS.get(option[1])
    if setting is None:
        return option[0]
    return setting if option[2] is None else f'{setting} {{"{option[2]}": "{option[3]}"}}'


def _options(group: str, field: str) -> Iterator[str]:
    """What the option of a setting may be called: its name, also without its unit or in the singular."""
    name = field.replace("_", "-")
    units = ("-usd", "-days", "-s", "s")
    yield from (name, *(name.removesuffix(unit) for unit in units))
    yield from (
        f"{group}-{name}",
        f"{group}-{name}".removesuffix("-s"),
        *([group] if name in {"uri", "measure"} else []),
    )


_SETTINGS: dict[str, str] = {}
for _group, _model in GROUPS.items():
    for _field in _model.model_fields:
        for _option in _options(_group.removesuffix("s"), _field):
            _SETTINGS.setdefault(_option, f"{_group}.{_field}")
