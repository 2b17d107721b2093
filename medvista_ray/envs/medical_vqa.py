"""`MedicalVQAEnv`: a question about medical images, answered by thinking, calling tools and looking again."""

from __future__ import annotations

from typing import ClassVar

from medvista_ray.config.schema import EnvConfig
from medvista_ray.envs.tool_env import ToolEnv
from medvista_ray.types.messages import AnswerKind
from medvista_ray.types.protocols import TaskSource


class MedicalVQAEnv(ToolEnv):
    """Closed and open questions, numbers and lists. The last call of an episode is checked, not run.

    Without an answer the format level is -1, since the protocol asks for one: calling tools for ever pays nothing.
    """

    needs_small_views: ClassVar[bool] = True
    answer_kinds: ClassVar[tuple[AnswerKind, ...]] = ("choice", "text", "number", "list")

    @classmethod
    def make_default_config(cls) -> EnvConfig:
        """Show the pocket set at the size at which a tool is needed: at full size the first view holds the letter."""
        from medvista_ray.data.scene import VIEW_PX

        return EnvConfig(view_size_px=VIEW_PX)

    @classmethod
    def make_default_tasks(cls) -> TaskSource:
        """Return the pocket set: real images that come with installed packages, with marks drawn into them."""
        from medvista_ray.data.sources import make_task_source

        return make_task_source("pocket", "train", families=(), weights=(), num_tasks=0, seed=0)
