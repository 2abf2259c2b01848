"""``imagemill check``: each thing that a run needs, ok or what to do about it."""

from __future__ import annotations

import argparse

import orjson

from imagemill.cli.exit_codes import DONE, UNUSABLE
from imagemill.cli.options import output_of, settings_of
from imagemill.cli.routes import apis_of
from imagemill.cli.terminal import stdout
from imagemill.runs.preflight import Finding, check_all

_MARKS = {True: ("ok", "green"), False: ("FAILS", "bold red"), None: ("?", "yellow")}


def show_check(arguments: argparse.Namespace) -> int:
    """Try everything and print it; the exit code."""
    findings = check_all(
        apis_of(arguments),
        output_of(arguments),
        settings_of(arguments, "execution"),
        settings_of(arguments, "picture"),
        settings_of(arguments, "quality"),
        image=arguments.image,
    )
    failed = any(finding.ok is False for finding in findings)
    if arguments.json:
        document = {"ok": not failed, "checks": [finding.model_dump() for finding in findings]}
        print(orjson.dumps(document).decode())
    else:
        for finding in findings:
            _print(finding)
    return UNUSABLE if failed else DONE


def _print(finding: Finding) -> None:
    mark, style = _MARKS[finding.ok]
    stdout.print(f"{finding.what:8}", end="")
    stdout.print(f"{mark:6}", style=style, end="")
    stdout.print(finding.words, markup=False, soft_wrap=True)
