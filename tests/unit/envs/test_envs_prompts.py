import pytest

from medvista_ray.envs.prompts import make_system_message


@pytest.mark.parametrize(
    ("answers_with", "unit", "ending"),
    [("number", "mm", "Answer with a number and its unit and nothing else."),
     ("number", "nuclei", "Answer with a number and its unit and nothing else."),
     ("number", "", "Answer with a number and nothing else."),
     ("text", "", "Answer with a few words and nothing else.")],
)  # fmt: skip
def test_the_protocol_says_what_an_answer_is(answers_with, unit, ending):
    message = make_system_message((), answers_with=answers_with, style="schemas", unit=unit)
    assert message is not None
    assert message.text.endswith(f"\n{ending}")
