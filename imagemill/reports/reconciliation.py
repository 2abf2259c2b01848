"""Puts the comparison with the vendor's bill into a run's report."""

from __future__ import annotations

import re

from imagemill.bucket.image_bucket import ImageBucket
from imagemill.media_types import HTML
from imagemill.reports.templating import environment
from imagemill.runs.folder import RunFolder
from imagemill.runs.reconciliation import Reconciliation, reason_in_words

_BEGIN, _END = "<!-- reconciliation -->", "<!-- /reconciliation -->"
_SECTION = re.compile(f"{_BEGIN}.*?{_END}\n?", re.DOTALL)


def add_to_report(bucket: ImageBucket, found: Reconciliation) -> str | None:
    """Put the comparison into the run's report, in place of an earlier one; the report's address, if any.

    A later resume writes the report anew, without it.
    """
    name = f"runs/{found.run_id}/report.html"
    report = bucket.read(name)
    if report is None:
        return None
    section = (
        environment()
        .get_template("reconciliation.html.j2")
        .render(found=found, words={name: reason_in_words(name) for name in found.reasons})
    )
    page = _SECTION.sub("", report.decode("utf-8"))
    # Texts in the page are escaped: none of them can be this tag.
    before, tag, after = page.partition('<section id="images">')
    file = RunFolder(found.run_id).path / "report.html"
    file.write_text(f"{before}{_BEGIN}{section}{_END}\n{tag}{after}", encoding="utf-8")
    return bucket.upload(file, name, HTML)
