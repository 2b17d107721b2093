"""The demo, stage by stage: data, cold start, reinforcement learning with and without tools, evaluation, report.

    data -> base, sft_tools (SFT, both cores) -> rl_tools, rl_no_tools (Ray) -> five evaluations -> summary, report

Each stage leaves a marker, so that a second call goes on where an interrupted one stopped. A stage knows the settings
it depends on; when they change, it and what follows run again.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

from medvista_ray.assembly import StartRuntime
from medvista_ray.config.schema import RunConfig
from medvista_ray.data.manifest import load_manifest
from medvista_ray.errors import ConfigError, StoppedError
from medvista_ray.recipes.evaluate import make_held_out, read_row, run_evaluation
from medvista_ray.recipes.inputs import compute_input_digest
from medvista_ray.recipes.progress import Reporter
from medvista_ray.recipes.rl import RLResult, make_training_tasks, run_rl
from medvista_ray.recipes.sft import run_sft
from medvista_ray.recipes.summary import make_summary
from medvista_ray.runs.directory import RunDirectory
from medvista_ray.runs.memory import MemorySampler
from medvista_ray.runs.stages import StageMarkers, compute_fingerprint
from medvista_ray.runs.summary import Summary, write_summary

logger = logging.getLogger(__name__)
FULL_ROWS = ("base", "base_tools", "sft_tools", "rl_no_tools", "rl_tools")
QUICK_ROWS = ("sft_tools", "rl_tools")
# row -> (model folder, are tools offered)
ROWS: dict[str, tuple[str, bool]] = {
    "base": ("base", False),
    "base_tools": ("base", True),
    "sft_tools": ("sft_tools", True),
    "rl_no_tools": ("rl_no_tools", False),
    "rl_tools": ("rl_tools", True),
}
_SFT_KEYS = ("policy", "data", "env", "sft", "coldstart", "seed")
_RL_KEYS = ("mode", "policy", "data", "env", "rollout", "buffer", "inference", "learner", "train", "seed")
_EVALUATION_KEYS = ("data", "env", "evaluation", "seed")


def demo_config_paths(*, quick: bool) -> list[Path]:
    """Return the config files of the demo, of the installed package or of a checkout."""
    names = ["demo.yaml", "demo-quick.yaml"] if quick else ["demo.yaml"]
    for folder in (Path(str(resources.files("medvista_ray"))) / "configs", Path(__file__).parents[2] / "configs"):
        if (folder / names[0]).is_file():
            return [folder / name for name in names]
    raise ConfigError("the demo's config files are missing: install the package again")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One stage: what it depends on, and what it does; `run` returns plain JSON values."""

    name: str
    keys: tuple[str, ...]
    after: tuple[str, ...]
    run: Callable[[], dict[str, Any]]


class Demo:
    """Runs the stages that are not complete yet."""

    def __init__(
        self, config: RunConfig, *, run: RunDirectory, start: StartRuntime, reporter: Reporter, rows: Sequence[str]
    ) -> None:
        self._config = config
        self._run = run
        self._start = start
        self._reporter = reporter
        self._rows = tuple(rows)
        self._memory = MemorySampler()
        self._results: dict[str, dict[str, Any]] = {}

    def execute(self) -> Summary:
        """Run what is missing, then write the summary; the report is the caller's."""
        markers = StageMarkers(self._run)
        fingerprints: dict[str, str] = {}
        inputs = compute_input_digest(self._config)
        with self._memory:
            for stage in self._stages():
                after = [fingerprints[name] for name in stage.after] or [inputs]
                fingerprints[stage.name] = compute_fingerprint(self._config, stage.keys, after=after)
                found = markers.results(stage.name, fingerprints[stage.name])
                if found is not None:
                    self._reporter.say(f"{stage.name}: done before")
                    self._results[stage.name] = found
                    continue
                with markers.running(stage.name, fingerprints[stage.name]) as running:
                    if not running.goes_on:
                        self._forget(stage.name)
                    results = stage.run()
                results["wall_s"] = running.elapsed_s()
                results["peak_pss_bytes"] = self._memory.peak_pss_bytes
                markers.complete(stage.name, fingerprints[stage.name], results)
                self._results[stage.name] = results
                self._reporter.say(f"{stage.name}: {results['wall_s']:.0f} s  {results.get('note', '')}".rstrip())
        outcomes = {row: read_row(self._run, row) for row in self._rows}
        summary = make_summary(self._config, outcomes=outcomes, results=self._results)
        write_summary(self._run, summary)
        return summary

    def _forget(self, stage: str) -> None:
        """Delete what an earlier run of a stage left to go on from: its settings were others."""
        for label in (stage, f"{stage}-sft"):
            shutil.rmtree(self._run.checkpoints_path(label), ignore_errors=True)

    def _stages(self) -> list[Stage]:
        models = sorted({ROWS[row][0] for row in self._rows})
        stages = [Stage(name="data", keys=("data", "seed"), after=(), run=self._data)]
        if "base" in models or "rl_no_tools" in models:
            stages.append(self._sft_stage("base", offer_tools=False))
        stages.append(self._sft_stage("sft_tools", offer_tools=True))
        stages.append(self._rl_stage("rl_tools", "sft_tools", offer_tools=True))
        if "rl_no_tools" in models:
            stages.append(self._rl_stage("rl_no_tools", "base", offer_tools=False))
        stages.extend(self._evaluation_stage(row) for row in self._rows)
        return stages

    def _sft_stage(self, model: str, *, offer_tools: bool) -> Stage:
        return Stage(name=model, keys=_SFT_KEYS, after=("data",), run=lambda: self._sft(model, offer_tools=offer_tools))

    def _rl_stage(self, model: str, initial: str, *, offer_tools: bool) -> Stage:
        return Stage(
            name=model, keys=_RL_KEYS, after=(initial,), run=lambda: self._rl(model, initial, offer_tools=offer_tools)
        )

    def _evaluation_stage(self, row: str) -> Stage:
        model, _ = ROWS[row]
        return Stage(name=f"eval-{row}", keys=_EVALUATION_KEYS, after=(model,), run=lambda: self._evaluate(row))

    def _with(self, model: str | None, *, offer_tools: bool) -> RunConfig:
        config = replace(self._config, env=replace(self._config.env, offer_tools=offer_tools))
        if model is not None:
            path = str(self._run.model_path(model))
            config = replace(config, policy=replace(config.policy, path=path))
        return config

    # --- stages
    def _data(self) -> dict[str, Any]:
        """Check every source by its digest and make the first task of each split."""
        used = [entry for entry in load_manifest() if self._config.data.source in entry.sets]
        for entry in used:
            entry.locate()
        _ = make_training_tasks(self._config)[0]
        held_out = {family: len(tasks) for family, tasks in make_held_out(self._config).items()}
        for tasks in make_held_out(self._config).values():
            _ = tasks[0]
        train = sum(entry.split == "train" for entry in used)
        note = f"{train} source files to train on, {len(used) - train} held out, none in both"
        return {"held_out": held_out, "note": note}

    def _sft(self, model: str, *, offer_tools: bool) -> dict[str, Any]:
        config = self._with(None, offer_tools=offer_tools)
        run_sft(config, run=self._run, label=model, reporter=self._reporter)
        return {}

    def _rl(self, model: str, initial: str, *, offer_tools: bool) -> dict[str, Any]:
        try:
            result: RLResult = run_rl(
                self._with(initial, offer_tools=offer_tools),
                run=self._run,
                label=model,
                start=self._start,
                reporter=self._reporter,
                memory=self._memory,
            )
        except StoppedError as stopped:
            raise StoppedError(f"{model}: {stopped}; the same command (without --fresh) goes on from here") from None
        actors = [asdict(actor) for actor in result.actors]
        return {"summary": result.summary, "actors": actors}

    def _evaluate(self, row: str) -> dict[str, Any]:
        model, offer_tools = ROWS[row]
        run_evaluation(self._with(model, offer_tools=offer_tools), run=self._run, row=row, reporter=self._reporter)
        return {}
