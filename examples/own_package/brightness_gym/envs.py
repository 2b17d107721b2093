"""An environment on the loop of medvista-ray, with a prompt and rewards of its own."""

from medvista_ray.config.schema import EnvConfig
from medvista_ray.envs.tool_env import ToolEnv
from medvista_ray.rewards.grading import is_correct
from medvista_ray.rewards.rubric import Score
from medvista_ray.types.messages import Message, TextPart


class FewCalls:
    """Pays for a right answer, a little for the form, and takes a little for every call."""

    def score(self, episode, *, task, reference):
        """Score a finished episode; the breakdown sums to the reward, and `correct` is what evaluation counts."""
        is_complete = episode.answer is not None and all(action.is_well_formed for action in episode.actions)
        right = is_complete and is_correct(episode.answer, task=task, reference=reference)
        calls = sum(action.used_tool for action in episode.actions)
        levels = {"correct": float(right), "format": 0.2 * is_complete, "calls": -0.05 * calls}
        return Score(reward=sum(levels.values()), breakdown=levels)


class BrightnessEnv(ToolEnv):
    """Is the image bright or dark? Play it with tasks of `examples/own_data.py`, or with any closed questions."""

    def __init__(self, **parts):
        """Take what `ToolEnv` takes."""
        super().__init__(rubric=FewCalls(), **parts)

    @classmethod
    def make_default_config(cls):
        """Offer the one tool of this package."""
        return EnvConfig(tools=("brightness_gym.tools:Brightness",), max_turns=3, view_size_px=84)

    @classmethod
    def make_default_tasks(cls):
        """Return the pocket set, whose questions the env can ask too."""
        from medvista_ray.data.sources import make_task_source

        return make_task_source("pocket", "train", families=("structure",), weights=(), num_tasks=0, seed=0)

    def first_messages(self, episode):
        """Tell the policy what there is, in front of what every question begins with."""
        hint = Message(role="system", parts=(TextPart(text="Measure, then answer."),))
        return (hint, *(message for message in super().first_messages(episode) if message.role != "system"))
