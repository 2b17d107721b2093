"""Every setting, its default, its unit and its bound. Defaults live here and nowhere else."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from medvista_ray.errors import ConfigError

_AT_LEAST_ONE = ">= 1"
_NOT_NEGATIVE = ">= 0"
_POSITIVE = "> 0"
_BOUNDS: dict[str, Callable[[float], bool]] = {
    _AT_LEAST_ONE: lambda value: value >= 1,
    _NOT_NEGATIVE: lambda value: value >= 0,
    _POSITIVE: lambda value: value > 0,
}


def _check(ok: bool, key: str, value: object, bound: str) -> None:
    if not ok:
        raise ConfigError(f"{key} must be {bound}, got {value!r}")


def _check_all(section: object, name: str, bound: str, *fields: str, unit: str = "") -> None:
    """Hold several fields of a section to one bound."""
    for field_name in fields:
        value = getattr(section, field_name)
        _check(isinstance(value, int | float), f"{name}.{field_name}", value, f"a number {bound} {unit}".strip())
        _check(_BOUNDS[bound](value), f"{name}.{field_name}", value, f"{bound} {unit}".strip())


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyConfig:
    """The vision-language model."""

    path: str = "builtin:tiny_base"  # a Hugging Face folder (Qwen3-VL or Qwen2.5-VL family) or the shipped base
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: str = "auto"  # auto = cuda where there is one; cpu, cuda, cuda:1

    def __post_init__(self) -> None:
        is_known = re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device) is not None
        _check(is_known, "policy.device", self.device, "auto, cpu, cuda or cuda:<number>")


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """Which tasks, and how many."""

    source: str = "demo"  # demo | pocket | a folder with tasks.jsonl and images
    families: tuple[str, ...] = ()  # empty = every family of the source
    weights: tuple[float, ...] = ()  # share of each family in training, demo and pocket only; empty = equal
    num_tasks: int = 0  # of one training epoch; 0 = all of a folder, 1,024 of demo and pocket, which are drawn
    num_held_out: int = 0  # 0 = all of a folder, 240 per family of demo and pocket

    def __post_init__(self) -> None:
        enough = not self.weights or len(self.weights) >= len(self.families)
        _check(enough, "data.weights", self.weights, "empty, or one per family")
        _check(all(weight >= 0 for weight in self.weights), "data.weights", self.weights, ">= 0 each")
        _check_all(self, "data", _NOT_NEGATIVE, "num_tasks", "num_held_out")


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvConfig:
    """The environment: tools, limits, deadlines."""

    target: str = "medvista_ray.envs.medical_vqa:MedicalVQAEnv"
    tools: tuple[str, ...] = ("zoom", "window_level", "measure", "flip_rotate")  # built-in names, or pkg.module:Class
    rubric: str = ""  # a name of rewards/registry.py, or pkg.module:Class; empty = the one of the env
    offer_tools: bool = True
    tool_prompt: Literal["names", "schemas"] = "schemas"
    list_choices: bool = True  # write the choices of a closed question into the prompt
    view_size_px: int = 448  # longest side of what the policy is shown
    max_turns: int = 6
    max_action_tokens: int = 512
    max_context_tokens: int = 8192
    tool_timeout_s: float = 10.0
    service_threads: int = 1  # of each tool that is a service (segment, read_text)
    episode_timeout_s: float = 120.0
    group_timeout_s: float = 300.0

    def __post_init__(self) -> None:
        are_names = not isinstance(self.tools, str) and all(isinstance(tool, str) for tool in self.tools)
        _check(are_names, "env.tools", self.tools, "a list of names, or pkg.module:Class")
        limits = ("view_size_px", "max_turns", "max_action_tokens", "max_context_tokens", "service_threads")
        _check_all(self, "env", _AT_LEAST_ONE, *limits)
        _check_all(self, "env", _POSITIVE, "tool_timeout_s", "episode_timeout_s", "group_timeout_s", unit="seconds")


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutConfig:
    """How groups are sampled."""

    group_size: int = 8
    temperature: float = 1.0  # training refuses top_p, top_k and penalties: they have no field
    num_shards: int = 2
    slots_per_shard: int = 8  # groups that one shard runs at once
    blob_cache_mb: int = 256  # encoded images that one process keeps

    def __post_init__(self) -> None:
        _check(self.group_size >= 2, "rollout.group_size", self.group_size, ">= 2")
        _check_all(self, "rollout", _POSITIVE, "temperature")
        _check_all(self, "rollout", _AT_LEAST_ONE, "num_shards", "slots_per_shard", "blob_cache_mb")


@dataclass(frozen=True, slots=True, kw_only=True)
class BufferConfig:
    """The ledger and its leases (docs/protocol.md)."""

    groups_per_step: int = 8
    max_staleness: int = 2  # policy versions
    max_concurrent: int = 16  # groups reserved or running
    ack_wait_s: float = 600.0  # until an unacknowledged lease goes back
    max_attempts: int = 3  # executions of one group after dead shards
    max_issues: int = 4  # issues of one task before it fails as too slow
    max_deliver: int = 4  # hand-outs of one group
    converged_groups: int = 0  # filtered groups in a row that end the run; 0 = never

    def __post_init__(self) -> None:
        _check(self.max_staleness >= 0, "buffer.max_staleness", self.max_staleness, ">= 0 policy versions")
        counts = ("groups_per_step", "max_concurrent", "max_attempts", "max_issues", "max_deliver")
        _check_all(self, "buffer", _AT_LEAST_ONE, *counts)
        _check_all(self, "buffer", _POSITIVE, "ack_wait_s", unit="seconds")
        _check_all(self, "buffer", _NOT_NEGATIVE, "converged_groups")


@dataclass(frozen=True, slots=True, kw_only=True)
class InferenceConfig:
    """The engines."""

    engine: Literal["transformers"] = "transformers"
    num_engines: int = 1
    max_batch: int = 64  # sequences in one generate batch
    num_threads: int = 1  # torch threads of one engine; two OpenMP pools on two cores starve each other

    def __post_init__(self) -> None:
        _check_all(self, "inference", _AT_LEAST_ONE, "num_engines", "max_batch", "num_threads")


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerConfig:
    """The policy-gradient update."""

    world_size: int = 1  # FSDP2 ranks
    num_threads: int = 1
    lr: float = 1e-6
    warmup_steps: int = 5
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    minibatches: int = 1  # optimizer updates per train step
    microbatch_tokens: int = 8192  # padded tokens of one forward
    loss: Literal["grpo", "dapo", "dr_grpo", "gspo"] = "grpo"
    clip_low: float = 0.2
    clip_high: float = 0.2
    importance_cap: float = 2.0  # truncated importance sampling; 0 = off
    kl_coefficient: float = 0.0  # against the initial weights
    constant_length: int = 512  # action tokens of a sequence; what dr_grpo divides by
    max_logprob_diff: float = 1e-3  # parity bound in float32

    def __post_init__(self) -> None:
        counts = ("world_size", "num_threads", "minibatches", "microbatch_tokens", "constant_length")
        _check_all(self, "learner", _AT_LEAST_ONE, *counts)
        _check_all(self, "learner", _POSITIVE, "lr", "max_grad_norm", "clip_high", "max_logprob_diff")
        _check_all(self, "learner", _NOT_NEGATIVE, "warmup_steps", "weight_decay", "kl_coefficient", "importance_cap")
        _check(0 < self.clip_low < 1, "learner.clip_low", self.clip_low, "in (0, 1)")
        _check(all(0 <= beta < 1 for beta in self.betas), "learner.betas", self.betas, "two numbers in [0, 1)")


@dataclass(frozen=True, slots=True, kw_only=True)
class SFTConfig:
    """Supervised fine-tuning on cold-start trajectories."""

    steps: int = 400
    batch_size: int = 64
    lr: float = 1e-3
    warmup_steps: int = 20
    min_lr_ratio: float = 0.1
    num_threads: int = 2
    max_grad_norm: float = 1.0
    microbatch_tokens: int = 16384

    def __post_init__(self) -> None:
        _check_all(self, "sft", _AT_LEAST_ONE, "steps", "batch_size", "num_threads", "microbatch_tokens")
        _check_all(self, "sft", _POSITIVE, "lr", "max_grad_norm")
        _check_all(self, "sft", _NOT_NEGATIVE, "warmup_steps")
        _check(0 <= self.min_lr_ratio <= 1, "sft.min_lr_ratio", self.min_lr_ratio, "in [0, 1]")


@dataclass(frozen=True, slots=True, kw_only=True)
class ColdStartConfig:
    """Where SFT data come from."""

    source: str = "expert"  # expert | RUN_DIRECTORY:LABEL, a recording written by `medvista`
    expert: str = ""  # pkg.module:function that plans an episode from a task record; empty = the scripted expert
    num_trajectories: int = 4096
    right_share: float = 0.35  # how often the scripted expert looks at the right place
    second_look_share: float = 0.0  # how often it looks again, there, after a look that showed nothing

    def __post_init__(self) -> None:
        _check_all(self, "coldstart", _AT_LEAST_ONE, "num_trajectories")
        for key in ("right_share", "second_look_share"):
            _check(0 <= getattr(self, key) <= 1, f"coldstart.{key}", getattr(self, key), "in [0, 1]")


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationConfig:
    """Held-out evaluation."""

    samples_per_item: int = 2
    max_concurrent: int = 96  # episodes at once
    num_threads: int = 2
    bootstrap_draws: int = 2000

    def __post_init__(self) -> None:
        counts = ("samples_per_item", "max_concurrent", "num_threads", "bootstrap_draws")
        _check_all(self, "evaluation", _AT_LEAST_ONE, *counts)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """Length of a run, checkpoints, what is kept."""

    num_epochs: int = 1
    checkpoint_every: int = 50  # train steps
    keep_last: int = 2
    probe_every: int = 10  # publishes between parity probes
    record_every: int = 20  # every n-th committed group goes into the run directory
    max_recorded: int = 200  # trajectories kept in the run directory
    no_progress_s: float = 300.0  # watchdog
    max_resumes: int = 3  # resumes without a new checkpoint before the run fails

    def __post_init__(self) -> None:
        counts = ("num_epochs", "checkpoint_every", "keep_last", "probe_every", "record_every", "max_resumes")
        _check_all(self, "train", _AT_LEAST_ONE, *counts)
        _check_all(self, "train", _NOT_NEGATIVE, "max_recorded")
        _check_all(self, "train", _POSITIVE, "no_progress_s", unit="seconds")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterConfig:
    """Ray: where it is, and what each actor asks for."""

    address: str = ""  # empty = RAY_ADDRESS, else a Ray started for this run on this machine
    engine_cpus: float = 1.0
    engine_gpus: float = 0.0
    learner_cpus: float = 1.0
    learner_gpus: float = 0.0
    shard_cpus: float = 0.25
    service_cpus: float = 1.0  # of each tool that is a service
    start_timeout_s: float = 120.0

    def __post_init__(self) -> None:
        _check_all(self, "cluster", _POSITIVE, "shard_cpus")
        cpus = ("engine_cpus", "engine_gpus", "learner_cpus", "learner_gpus", "service_cpus")
        _check_all(self, "cluster", _NOT_NEGATIVE, *cpus)
        _check_all(self, "cluster", _POSITIVE, "start_timeout_s", unit="seconds")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """One run."""

    run_name: str = "run"
    out: str = "runs"  # the run directory is out/run_name
    mode: Literal["ray", "local"] = "ray"
    seed: int = 0
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    data: DataConfig = field(default_factory=DataConfig)
    env: EnvConfig = field(default_factory=EnvConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    buffer: BufferConfig = field(default_factory=BufferConfig)
    inference: InferenceConfig = field(default_factory=InferenceConfig)
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    sft: SFTConfig = field(default_factory=SFTConfig)
    coldstart: ColdStartConfig = field(default_factory=ColdStartConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)

    def __post_init__(self) -> None:
        _check(bool(self.run_name.strip()), "run_name", self.run_name, "a non-empty name")
        _check(self.seed >= 0, "seed", self.seed, ">= 0")
        capacity = self.rollout.num_shards * self.rollout.slots_per_shard
        _check(
            self.buffer.max_concurrent <= capacity,
            "buffer.max_concurrent",
            self.buffer.max_concurrent,
            f"<= rollout.num_shards * rollout.slots_per_shard = {capacity}",
        )
        if self.mode == "local":
            _check(self.learner.world_size == 1, "learner.world_size", self.learner.world_size, "1 with mode=local")
            in_lockstep = self.buffer.max_staleness == 0
            _check(
                not in_lockstep or self.inference.num_engines == 1,
                "inference.num_engines",
                self.inference.num_engines,
                "1 with mode=local and buffer.max_staleness=0: one engine runs when every episode waits",
            )


def section_as_dict(section: Any) -> dict[str, Any]:
    """Return the fields of one section as plain values, for records and reports."""
    from dataclasses import asdict

    return asdict(section)
