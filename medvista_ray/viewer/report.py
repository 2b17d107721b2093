"""`report.html`: what a run did, on one self-contained page: settings, curves, the table, what the model looked at.

Reads a run directory and nothing else; loads nothing from outside, runs no script, and escapes every text of a model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

from medvista_ray.config.load import dump_config
from medvista_ray.errors import MissingPackageError
from medvista_ray.runs.directory import RunDirectory, write_atomic
from medvista_ray.runs.metrics import read_metrics
from medvista_ray.runs.summary import OVERALL, Accuracy, Summary, read_summary
from medvista_ray.runs.trajectories import read_blob, read_trajectories
from medvista_ray.types.messages import ImageRef
from medvista_ray.types.trajectories import TrajectoryGroup
from medvista_ray.viewer.curves import draw_curves
from medvista_ray.viewer.episodes import EpisodeView, choose_episodes, make_episode
from medvista_ray.viewer.marks import LABEL_SIZE

NUM_EPISODES = 10  # before RL, and after it
BEFORE, AFTER = "sft_tools", "rl_tools"
DEMO_SOURCE = "demo"
ROW_NOTES = {
    "base": "answer-only SFT, no tools",
    "base_tools": "the same weights, tools offered",
    "sft_tools": "cold start from an expert with a wrong habit",
    "rl_no_tools": "its own RL run, no tools",
    "rl_tools": "RL from sft_tools",
}
WARNINGS = (
    "Made for demonstration: nothing here says anything about medical skill. Not for use on patients.",
    "Intervals are a bootstrap over items: they do not cover new patients.",
)
DEMO_WARNINGS = (
    "Few subjects: all items of the demo set come from a handful of images.",
    "Letters and marks are synthetic inserts in real medical images.",
)
_FAMILIES = (OVERALL, "zoom", "window", "structure", "measure")


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One item, under one or two policies."""

    episodes: tuple[tuple[str, EpisodeView], ...]  # (heading, episode)


def write_report(run: RunDirectory, summary: Summary | None = None) -> None:
    """Write `report.html`, whole or not at all; without a summary, that of a finished run is read."""
    write_atomic(run.report_path, render_report(run, summary).encode())


def render_report(run: RunDirectory, summary: Summary | None = None) -> str:
    """Return the page as text."""
    try:
        from jinja2 import Environment, StrictUndefined
        from markupsafe import Markup
    except ImportError as error:
        raise MissingPackageError("jinja2 is not installed: pip install 'medvista-ray[train]'") from error
    if summary is None and run.is_finished:
        summary = read_summary(run)
    config = run.read_config()
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    source = resources.files("medvista_ray.viewer").joinpath("report.html.j2").read_text(encoding="utf-8")
    curves = [(curve.title, Markup(curve.svg)) for curve in draw_curves(read_metrics(run))]
    return environment.from_string(source).render(
        config=config,
        config_text=dump_config(config),
        summary=summary,
        facts=[] if summary is None else _make_facts(summary),
        families=[] if summary is None else _order_families(summary),
        row_notes=ROW_NOTES,
        curves=curves,
        sections=_make_sections(run),
        warnings=(*WARNINGS, *(DEMO_WARNINGS if config.data.source == DEMO_SOURCE else ())),
        percent=_percent,
        label_size=LABEL_SIZE,
    )


def _make_facts(summary: Summary) -> list[tuple[str, str]]:
    """Return the numbers at the top of the page."""
    facts = [("policy", f"{summary.num_parameters / 1e6:.3g} M parameters")]
    best: Accuracy | None = summary.accuracy.get(AFTER, {}).get(OVERALL)
    if best is not None:
        facts.insert(0, (f"accuracy of {AFTER}", f"{best.sampled:.2f}"))
    facts.append(("wall time", _format_seconds(summary.wall_s.total)))
    facts.append(("groups trained", f"{summary.groups.consumed} of {summary.groups.submitted}"))
    facts.append(("staleness", f"{summary.staleness.mean:.2f} mean, {summary.staleness.max} max"))
    facts.append(("rollout", f"{summary.rollout_tokens_per_s:,.0f} tokens/s"))
    if summary.max_abs_logprob_diff is not None:
        facts.append(("engine against learner", f"{summary.max_abs_logprob_diff:.1e} nats max"))
    if summary.peak_pss_bytes is not None:
        facts.append(("peak memory", f"{summary.peak_pss_bytes / 2**30:.1f} GiB"))
    return facts


def _order_families(summary: Summary) -> list[str]:
    found = {family for row in summary.accuracy.values() for family in row}
    return [*(family for family in _FAMILIES if family in found), *sorted(found - set(_FAMILIES))]


def _make_sections(run: RunDirectory) -> list[tuple[str, str, Sequence[Comparison]]]:
    """Return (title, note, comparisons): before and after RL side by side where both were recorded."""
    labels = run.recorded_labels()
    groups = {label: list(read_trajectories(run, label)) for label in labels}
    if BEFORE in groups and AFTER in groups:
        both = _pair(run, groups[BEFORE], groups[AFTER])
        if both:
            note = f"The same held-out items under {BEFORE} and {AFTER}, in the order of the recording, not picked."
            return [("What the model looked at, before and after RL", note, both)]
    sections: list[tuple[str, str, Sequence[Comparison]]] = []
    for label in labels:
        chosen = choose_episodes(groups[label], NUM_EPISODES)
        comparisons = [Comparison(episodes=((label, _show(run, group)),)) for group in chosen]
        note = "In the order of the recording, the families in turn, not picked."
        sections.append((f"What the model looked at: {label}", note, comparisons))
    return sections


def _pair(run: RunDirectory, before: Sequence[TrajectoryGroup], after: Sequence[TrajectoryGroup]) -> list[Comparison]:
    later = {group.task.task_id: group for group in after if group.trajectories}
    shared = [group for group in before if group.task.task_id in later]
    return [
        Comparison(
            episodes=(
                (f"before RL ({BEFORE})", _show(run, group)),
                (f"after RL ({AFTER})", _show(run, later[group.task.task_id])),
            )
        )
        for group in choose_episodes(shared, NUM_EPISODES)
    ]


def _show(run: RunDirectory, group: TrajectoryGroup) -> EpisodeView:
    def read(image: ImageRef) -> bytes:
        return read_blob(run, image)

    return make_episode(group, group.trajectories[0], read)


def _percent(share: float) -> str:
    """Return a width for a bar."""
    return f"{100 * share:.1f}%"


def _format_seconds(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
