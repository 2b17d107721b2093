"""Curves of a run as inline SVG, drawn by matplotlib. Knows metric keys and points; no files, no pages."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from medvista_ray.errors import MissingPackageError
from medvista_ray.runs.metrics import MetricPoint

_INK = "#010203"  # replaced by the colour of the page's text, so that the curves follow light and dark
_COLORS = ("#e07a1f", "#2a78c8", "#3a9a5b", "#b0489b", "#8a6d3b", "#5b6ee1", "#c0392b", "#16a3a3")
_DASHES = ("-", "--", ":", "-.")
_MAIN = "rl_tools"  # drawn first and solid
_SMOOTH_FROM = 24  # points; shorter curves are drawn as they are


Lines = dict[tuple[str, str], list[tuple[int, float]]]  # (label, name in the key or "") -> (step, value)


@dataclass(frozen=True, slots=True, kw_only=True)
class CurveSpec:
    """Which metrics share one chart."""

    title: str
    key: re.Pattern[str]  # of a whole metric key; a group `name` goes into the legend
    y_label: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """One drawn chart."""

    title: str
    svg: str


def _spec(title: str, key: str, y_label: str) -> CurveSpec:
    return CurveSpec(title=title, key=re.compile(key), y_label=y_label)


SPECS = (
    _spec("Reward", r"rollout/reward/mean", "mean of live members"),
    _spec("Reward by family", r"rollout/reward[_/](?P<name>(?!mean$|std$|min$|max$)[^/]+)(/mean)?", "mean"),
    _spec("Staleness of trained groups", r"buffer/staleness/(?P<name>mean|max)", "policy versions"),
    _spec("Reward by part", r"reward/(?P<name>.+)/mean", "mean"),
    _spec("KL to the engine and to the initial weights", r"learner/(?P<name>\w*kl\w*)/\w+", "nats"),
    _spec("Entropy", r"learner/entropy/\w+", "nats per token"),
    _spec("Gradient norm", r"learner/grad_norm/\w+", "L2"),
    _spec("Rollout speed", r"rollout/action_tokens/per_s", "sampled tokens per second"),
    _spec("SFT loss", r"sft/(?P<name>\w*loss)/\w+", "nats per token"),
)


def draw_curves(points: Sequence[MetricPoint], specs: Sequence[CurveSpec] = SPECS) -> list[Curve]:
    """Draw one chart per spec that has at least two finite points in one line."""
    curves = []
    for spec in specs:
        lines = {name: line for name, line in _collect(points, spec).items() if len(line) > 1}
        if lines:
            curves.append(Curve(title=spec.title, svg=_draw(lines, spec)))
    return curves


def _collect(points: Sequence[MetricPoint], spec: CurveSpec) -> Lines:
    lines: Lines = {}
    for point in points:
        for key, value in point.values.items():
            match = spec.key.fullmatch(key)
            if match is None or not math.isfinite(value):
                continue
            name = match.groupdict().get("name") or ""
            lines.setdefault((point.label, name), []).append((point.step, value))
    return lines


def _draw(lines: Lines, spec: CurveSpec) -> str:
    try:
        import matplotlib
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingPackageError("matplotlib is not installed: pip install 'medvista-ray[train]'") from error
    style = {
        "svg.fonttype": "none",
        "svg.hashsalt": spec.title,
        "text.parse_math": False,  # a dollar sign in a name is a dollar sign
        "font.size": 9,
        **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), _INK),
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(4.4, 2.4 + 0.17 * ((len(lines) + 1) // 2)), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        labels = sorted({label for label, _ in lines}, key=lambda label: (label != _MAIN, label))
        names = sorted({name for _, name in lines})
        for label, name in sorted(lines, key=lambda line: (labels.index(line[0]), line[1])):
            which = (
                names.index(name) if len(names) > 1 else labels.index(label)
            )  # colours tell names apart, else labels
            dashes = _DASHES[labels.index(label) % len(_DASHES)] if len(names) > 1 else "-"
            _draw_line(axes, f"{label} {name}".rstrip(), lines[label, name], _COLORS[which % len(_COLORS)], dashes)
        axes.set_xlabel("step")
        axes.set_ylabel(spec.y_label)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color=_INK, alpha=0.12, linewidth=0.6)
        axes.margins(x=0.02)
        figure.legend(loc="outside lower center", frameon=False, fontsize=8, ncols=min(len(lines), 2))
        figure.patch.set_visible(False)
        axes.patch.set_visible(False)
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    svg = file.getvalue()
    return svg[svg.index("<svg") :].replace(_INK, "currentColor")


def _draw_line(axes, name: str, line: Sequence[tuple[int, float]], color: str, dashes: str) -> None:  # type: ignore[no-untyped-def]
    steps, values = [step for step, _ in line], [value for _, value in line]
    if len(line) < _SMOOTH_FROM:
        axes.plot(steps, values, dashes, color=color, linewidth=1.6, label=name)
        return
    axes.plot(steps, values, color=color, linewidth=0.7, alpha=0.25)
    axes.plot(steps, _smooth(values, max(2, len(values) // 24)), dashes, color=color, linewidth=1.8, label=name)


def _smooth(values: Sequence[float], reach: int) -> list[float]:
    """Average each value with `reach` neighbours on either side, fewer at the ends."""
    windows = (values[max(0, index - reach) : index + reach + 1] for index in range(len(values)))
    return [sum(window) / len(window) for window in windows]
