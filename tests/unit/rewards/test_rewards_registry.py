import pytest

from medvista_ray.errors import ConfigError
from medvista_ray.rewards.registry import BUILTIN_RUBRICS, make_rubric
from medvista_ray.rewards.rubric import FinishedEpisode, Score
from medvista_ray.types.messages import Reference, Task


class Zero:
    def score(self, episode, *, task, reference):
        return Score(reward=0.0, breakdown={"correct": 0.0})


class NeedsAPrice(Zero):
    def __init__(self, price):
        self.price = price


@pytest.mark.parametrize("name", BUILTIN_RUBRICS)
def test_every_name_of_the_table_makes_its_rubric(name):
    rubric = make_rubric(name)
    assert f"{type(rubric).__module__}:{type(rubric).__qualname__}" == BUILTIN_RUBRICS[name]


def test_what_can_be_farmed_says_that_it_is_published():
    published = {name for name in BUILTIN_RUBRICS if name.endswith("_published")}
    assert set(BUILTIN_RUBRICS) - published == {"vista", "segmentation", "grounding"}


def test_a_class_of_ones_own_is_imported():
    task = Task(task_id="t", family="f", question="q", images=())
    rubric = make_rubric(f"{__name__}:Zero")
    score = rubric.score(FinishedEpisode(actions=()), task=task, reference=Reference(task_id="t", answer=""))
    assert score.breakdown == {"correct": 0.0}


@pytest.mark.parametrize(
    ("spec", "message"),
    [("vsita", r"env\.rubric: no rubric 'vsita'; use one of vista, .*grounding.*pkg\.module:Class"), ("", "no rubric"),
     (":Class", "no rubric"), ("module:", "no rubric"), ("no_such_module:Class", "cannot import 'no_such_module'"),
     (".relative:Class", "cannot import"), (f"{__name__}:Missing", "has no class 'Missing' with a method `score`"),
     ("medvista_ray.rewards.rubric:Score", "has no class 'Score'"), ("math:pi", "has no class 'pi'"),
     (f"{__name__}:NeedsAPrice", "needs 'price' to be made")],
)  # fmt: skip
def test_a_wrong_spec_says_what_is_wrong(spec, message):
    with pytest.raises(ConfigError, match=message):
        make_rubric(spec)
