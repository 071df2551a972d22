"""Curves as SVG files, drawn by matplotlib (the ``bench`` extra): the same curves give the same bytes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .curves import Curve, cost_text, x_text


def draw(curves: Sequence[Curve], path: Path) -> None:
    """Draw the curves side by side over logarithmic axes of ``x``; small enough to lie in a repository.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    settings: Any = {"svg.fonttype": "none", "svg.hashsalt": "ingress", "font.family": "sans-serif", "font.size": 10}
    with matplotlib.rc_context(settings):
        figure, all_axes = pyplot.subplots(
            1, len(curves), figsize=(5.2 * len(curves), 3.2), squeeze=False, layout="constrained"
        )
        for axes, curve in zip(all_axes[0], curves, strict=True):
            axes.plot(curve.xs, curve.costs, marker="o", color="#0b7285", linewidth=1.5, markersize=4)
            axes.set_xscale("log")
            axes.set_xticks(curve.xs, [x_text(x) for x in curve.xs])
            axes.tick_params(axis="x", which="minor", bottom=False)
            # A scale from 0 shows growth as it is; only what spans orders of magnitude needs a logarithmic one.
            if max(curve.costs) > 20 * min(curve.costs):
                axes.set_yscale("log")
            else:
                axes.set_ylim(0, max(curve.costs) * 1.25)
            for x, cost in zip(curve.xs, curve.costs, strict=True):
                axes.annotate(
                    cost_text(cost), (x, cost), textcoords="offset points", xytext=(0, 6), ha="center", fontsize=8
                )
            axes.set_title(curve.title, fontsize=10)
            axes.set_xlabel(curve.x_name)
            axes.set_ylabel(curve.y_name)
            axes.grid(visible=True, alpha=0.25)
            axes.spines[["top", "right"]].set_visible(False)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})
        pyplot.close(figure)
    # matplotlib leaves blanks at the ends of lines.
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join(line.rstrip() for line in lines) + "\n", encoding="utf-8")
