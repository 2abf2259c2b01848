"""Draws a calibration: throughput and 429s by concurrency, in one self-contained HTML file."""

from __future__ import annotations

from html import escape
from pathlib import Path

from imagemill.engine.calibration import Calibration
from imagemill.errors import InputError
from imagemill.reports.chart_geometry import scale

_WIDTH, _HEIGHT, _LEFT, _TOP = 640, 320, 70, 20


def write_plot(found: Calibration, path: Path) -> None:
    """Write the plot.

    Raises:
        InputError: the file cannot be written.
    """
    try:
        path.write_text(plot_html(found), encoding="utf-8")
    except OSError as error:
        raise InputError(f"Cannot write the plot to {str(path)!r}: {error.strerror}.") from error


def plot_html(found: Calibration) -> str:
    """The plot, as an HTML page."""
    levels = sorted(found.levels, key=lambda level: level.concurrency)
    up = scale([level.per_minute for level in levels], lambda value, _: f"{value:,.0f}", least=1.0)
    across = scale(
        [float(level.concurrency) for level in levels], lambda v, _: f"{v:g}", least=1.0, whole=True
    )

    def x(value: float) -> float:
        return round(_LEFT + _WIDTH * (100 - across.y(value)) / 100, 1)

    def y(percent: float) -> float:
        return round(_TOP + _HEIGHT * percent / 100, 1)

    grid = "".join(
        f'<path class="grid" d="M{_LEFT} {y(tick.at)}h{_WIDTH}"/>'
        f'<text x="{_LEFT - 8}" y="{y(tick.at) + 4}" text-anchor="end">{tick.label}</text>'
        for tick in up.ticks
    ) + "".join(
        f'<text x="{round(_LEFT + _WIDTH * (100 - tick.at) / 100, 1)}" y="{_TOP + _HEIGHT + 18}"'
        f' text-anchor="middle">{tick.label}</text>'
        for tick in across.ticks
    )
    line = "L".join(f"{x(level.concurrency)} {y(up.y(level.per_minute))}" for level in levels)
    dots = "".join(
        f'<circle class="{"refused" if level.refused_share else "fine"}" cx="{x(level.concurrency)}"'
        f' cy="{y(up.y(level.per_minute))}" r="5"><title>Concurrency {level.concurrency}:'
        f" {level.per_minute:,.0f} images per minute, {level.refused_share:.1%} 429s</title></circle>"
        for level in levels
    )
    rate = f", {found.per_minute:,.0f} images per minute" if found.per_minute else ""
    seen = f"{found.concurrency} concurrent requests{rate}" if found.limit_seen else "no limit was reached"
    title = escape(f"{found.provider} at {found.host}: {seen}")
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{title}</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 14px system-ui, sans-serif; margin: 2rem; }}
svg {{ max-width: 100%; }} text {{ fill: currentColor; font-size: 12px; }}
.grid {{ stroke: currentColor; opacity: .15; }} .line {{ fill: none; stroke: #3b7dd8; stroke-width: 2; }}
.fine {{ fill: #3b7dd8; }} .refused {{ fill: #d9534f; }}
</style>
<h1>{title}</h1>
<p>Images per minute by concurrency; red points had 429s. {found.images:,} images,
{found.seconds:,.0f} s, ${found.cost_usd:,.4f}.</p>
<svg viewBox="0 0 {_LEFT + _WIDTH + 30} {_TOP + _HEIGHT + 50}" role="img" aria-label="{title}">
{grid}<path class="line" d="M{line}"/>{dots}
<text x="{_LEFT + _WIDTH / 2}" y="{_TOP + _HEIGHT + 40}" text-anchor="middle">concurrent requests</text>
</svg>
</html>
"""
