"""An environment with rewards of your own. Train on it with env.target=own_rubric:ShortThoughts."""

from dataclasses import dataclass

from medvista_ray.envs.medical_vqa import MedicalVQAEnv
from medvista_ray.rewards.grading import is_correct
from medvista_ray.rewards.rubric import Score


@dataclass(frozen=True)
class ShortRubric:
    """Pays for a right answer, and takes a little for every action."""

    price: float = 0.05

    def score(self, episode, *, task, reference):
        """Score a finished episode; the breakdown is logged by name and sums to the reward."""
        right = episode.answer is not None and is_correct(episode.answer, task=task, reference=reference)
        levels = {"correct": float(right), "actions": -self.price * len(episode.actions)}
        return Score(reward=sum(levels.values()), breakdown=levels)


class ShortThoughts(MedicalVQAEnv):
    """The medical VQA environment under that rubric."""

    def __init__(self, **parts):
        super().__init__(rubric=ShortRubric(), **parts)


if __name__ == "__main__":
    env = ShortThoughts()
    env.reset(seed=0)
    *_, info = env.step("<think>A guess.</think><answer>A</answer>")
    print(info["reward_breakdown"])
    env.close()
