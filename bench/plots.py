"""Bar charts as SVG, written by hand: one bar a variant, a dot a round; legible on light and dark pages."""

from __future__ import annotations

from html import escape
from statistics import median

from bench.results import Result

_STYLE = """\
<style>
text { font: 13px system-ui, -apple-system, "Segoe UI", sans-serif; fill: #24292f; }
.title { font-weight: 600; font-size: 14px; }
.value { font-variant-numeric: tabular-nums; }
.note { font-size: 11px; fill: #57606a; }
.bar { fill: #8c959f; }
.ours { fill: #0969da; }
.dot { fill: none; stroke: #24292f; stroke-width: 1.2; }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3; }
.note { fill: #9198a1; }
.bar { fill: #6e7681; }
.ours { fill: #2f81f7; }
.dot { stroke: #e6edf3; }
}
</style>"""
_WIDTH, _LABELS, _VALUES, _ROW, _TOP = 720, 210, 80, 28, 44


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def bars(title: str, unit: str, result: Result, metric: str) -> str:
    """Return a chart of one metric: bars are medians, dots are the rounds. Empty when there is no sample."""
    samples = {variant: result.values(variant, metric) for variant in result.samples}
    known = [(variant, median(values)) for variant, values in samples.items() if values]
    if not known:
        return ""
    largest = max(max(samples[variant]) for variant, _ in known) or 1.0
    scale = (_WIDTH - _LABELS - _VALUES) / largest
    height = _TOP + _ROW * len(known) + 24
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" '
        f'viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(title)}">',
        _STYLE,
        f'<text class="title" x="8" y="24">{escape(title)}: {escape(unit)}</text>',
    ]
    for index, (variant, value) in enumerate(known):
        top = _TOP + index * _ROW
        middle = top + (_ROW - 8) / 2
        kind = "bar ours" if variant.startswith("sse_app") else "bar"
        parts.append(
            f'<text x="{_LABELS - 10}" y="{middle + 5:.1f}" text-anchor="end">{escape(variant)}</text>'
        )
        length = max(1.0, max(0.0, value) * scale)
        parts.append(
            f'<rect class="{kind}" x="{_LABELS}" y="{top}" width="{length:.1f}" height="{_ROW - 8}" rx="2"/>'
        )
        ends = [length]
        for sample in samples[variant]:
            at = max(0.0, sample) * scale
            ends.append(at + 4)
            parts.append(f'<circle class="dot" cx="{_LABELS + at:.1f}" cy="{middle:.1f}" r="3"/>')
        end = _LABELS + max(ends) + 8
        parts.append(f'<text class="value" x="{end:.1f}" y="{middle + 5:.1f}">{_number(value)}</text>')
    note = "bar: median; circles: the rounds"
    parts.append(f'<text class="note" x="{_LABELS}" y="{height - 10}">{note}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"
