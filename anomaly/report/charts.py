"""The charts of the report as inline SVG: equal numbers give equal bytes, and text stays text."""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

from anomaly.report.values import Curve

Values = NDArray[np.floating[Any]]

INK, MUTED, GRID = "#1c2733", "#55626f", "#dfe4e9"
ACCEPTED, REJECTED = "#3d7f9f", "#b8421f"
BAR = 0.05
"""Width of a histogram's bars in scores; 1 is a multiple of it"""
MIN_TOP, MAX_TOP = 2.0, 5.0
"""Bounds of the right end of the score axis"""
MIN_BOTTOM, MAX_BOTTOM = -2.0, -0.5
"""Bounds of the left end of the score axis"""
LINES = (("#9db4c4", "o"), ("#5b93b3", "s"), ("#1f6688", "^"), ("#0d3f58", "D"), ("#1c2733", "v"))
STYLE = {
    "svg.fonttype": "none",
    "font.size": 9.5,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "text.parse_math": False,  # a folder may be called $5$
}


def score_chart(histograms: Sequence[tuple[str, Values]]) -> Markup:
    """Draw histograms of scores, one below the other on one axis, with the threshold at 1.

    The count axis is logarithmic, so that a single image is visible. One wide bar at each end counts the scores beyond the
    axis.

    Args:
        histograms: title and scores (n,) of each histogram, n at least 1; infinite scores are allowed.
    """
    lowest = min(scores.min() for _, scores in histograms)
    highest = max(np.quantile(scores, 0.9, method="lower") for _, scores in histograms)
    # whole bars on both sides of the threshold: no bar holds both verdicts
    num_right = math.ceil((np.clip(highest, MIN_TOP, MAX_TOP) - 1) / BAR)
    num_left = math.ceil((1 - np.clip(lowest, MIN_BOTTOM, MAX_BOTTOM)) / BAR)
    edges = 1 + BAR * np.arange(-num_left, num_right + 1)
    middles = np.concatenate([[edges[0] - 2.5 * BAR], edges[:-1] + BAR / 2, [edges[-1] + 2.5 * BAR]])
    widths = np.concatenate([[3 * BAR], np.full(len(edges) - 1, BAR), [3 * BAR]])
    with _style("scores"):
        figure = Figure(figsize=(7.2, 0.75 + 0.78 * len(histograms)), layout="constrained")
        rows = figure.subplots(len(histograms), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
        tallest = 10
        for row, (title, scores) in zip(rows, histograms, strict=True):
            # (a, b]: a score of exactly 1 is accepted
            places = np.searchsorted(edges, scores.astype(np.float64), side="left")
            counts = np.bincount(places, minlength=len(edges) + 1)
            tallest = max(tallest, int(counts.max()))
            shown = np.flatnonzero(counts)
            colours = [REJECTED if middles[n] > 1 else ACCEPTED for n in shown]
            row.bar(middles[shown], counts[shown], widths[shown], color=colours, edgecolor="white", linewidth=0.4)
            for end in (0, len(edges)):
                if counts[end]:
                    row.bar(middles[end], counts[end], widths[end], fill=False, hatch="/////", edgecolor="white", lw=0)
            beyond = [f"{counts[end]:,} {way}" for end, way in ((0, "lower"), (-1, "higher")) if counts[end]]
            row.set_title(" and ".join(beyond), loc="right", fontsize=8.5, color=MUTED, pad=3)
            row.axvline(1, color=INK, linewidth=1.4)
            row.set_title(title, loc="left", fontsize=9.5, color=INK, pad=3)
            row.grid(axis="x", visible=False)
            row.tick_params(axis="x", length=3 if row is rows[-1] else 0)
        rows[0].set_yscale("log")
        rows[0].set_ylim(0.6, 1.3 * tallest)
        ticks = [10**power for power in range(7) if 10**power <= tallest]
        rows[0].set_yticks(ticks, [f"{tick:,}" for tick in ticks])
        rows[0].set_yticks([], minor=True)
        rows[0].set_xlim(middles[0] - 2 * BAR, middles[-1] + 2 * BAR)
        rows[-1].set_xlabel("score      (0 = typical good part, 1 = threshold)")
        rows[0].annotate(
            "threshold",
            (1, 0.95),
            xycoords=("data", "axes fraction"),
            xytext=(4, 0),
            textcoords="offset points",
            va="top",
        )
        return _svg(figure)


def curve_chart(
    curve: Curve, *, name: str, x_label: str, y_label: str, x_max: float, at_threshold: tuple[float, float] | None
) -> Markup:
    """Draw a rising curve of shares over the share of false alarms, with the point of the model's threshold.

    Args:
        curve: x and y, (n,) each, in [0, 1].
        name: unique name of the chart in its page.
        x_label: label of the horizontal axis.
        y_label: label of the vertical axis.
        x_max: right end of the axis.
        at_threshold: x and y of the threshold; None where it has no point on the curve.
    """
    with _style(name):
        figure = Figure(figsize=(3.9, 3.4), layout="constrained")
        axes = figure.subplots()
        axes.plot((0, 1), (0, 1), color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        axes.plot(*curve, color=ACCEPTED, linewidth=2)
        if at_threshold is not None:
            axes.plot(*at_threshold, "o", color=REJECTED, markersize=8, clip_on=False, zorder=3)
            left = at_threshold[0] < 0.6 * x_max
            axes.annotate(
                "at the threshold", at_threshold, xytext=(10 if left else -10, -14), textcoords="offset points",
                ha="left" if left else "right", color=REJECTED, fontweight="bold",
            )  # fmt: skip
        axes.set(xlim=(0, x_max), ylim=(0, 1.02), xlabel=x_label, ylabel=y_label)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(PercentFormatter(1, decimals=0, symbol="\u00a0%"))
        return _svg(figure)


def detection_chart(shares: Mapping[float, Sequence[tuple[float, float]]], *, name: str) -> Markup:
    """Draw the share of detected defects over their size, with one line per contrast and the 90 % line.

    Args:
        shares: contrast -> (size in pixels, detected share in [0, 1]), in ascending sizes.
        name: unique name of the chart in its page.
    """
    with _style(name):
        figure = Figure(figsize=(3.9, 2.7), layout="constrained")
        axes = figure.subplots()
        sizes = sorted({size for line in shares.values() for size, _ in line})
        axes.axhline(0.9, color=INK, linewidth=1, linestyle=(0, (4, 3)))
        for n, (contrast, line) in enumerate(sorted(shares.items())):
            colour, marker = LINES[n % len(LINES)]
            axes.plot(*zip(*line, strict=True), color=colour, marker=marker, markersize=5, label=f"{contrast:g}")
        axes.set_xscale("log")
        axes.set_xticks(sizes, [f"{size:.0f}" for size in sizes])
        axes.set_xticks([], minor=True)
        axes.set_yticks([0, 0.25, 0.5, 0.75, 0.9, 1])
        axes.set(ylim=(-0.03, 1.05), xlabel="size of the defect in pixels", ylabel="share detected")
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol="\u00a0%"))
        figure.legend(title="contrast", loc="outside right center", frameon=False, reverse=True, handlelength=1.4)
        return _svg(figure)


@contextmanager
def _style(name: str) -> Iterator[None]:
    """Set the style of all charts, independent of the user's settings; `name` makes the ids of a page unique."""
    with matplotlib.rc_context(), warnings.catch_warnings():
        # the browser draws the letters with its own font
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({**STYLE, "svg.hashsalt": name})
        yield


def _svg(figure: Figure) -> Markup:
    """Render as an element of a page: without prolog, metadata, size and unused ids."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    svg = buffer.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"| id="[\w.]+_\d+"', "", svg)
    svg = re.sub(r'<svg[^>]*?(viewBox="[^"]*")[^>]*>', r'<svg \1 aria-hidden="true" focusable="false">', svg, count=1)
    return Markup(svg)
