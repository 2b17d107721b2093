import json

import pytest
from fuzz_cases import fuzz
from hypothesis import given
from hypothesis import strategies as st

from medvista_ray.envs.protocol_text import Answer, BadCall, Call, Malformed, parse_action
from medvista_ray.types.tool_calls import ToolCall

ZOOM = '{"name":"zoom","arguments":{"bbox":[333,0,667,333]}}'
TAGS = ["<think>", "</think>", "<tool_call>", "</tool_call>", "<answer>", "</answer>"]


def test_an_answer():
    parsed = parse_action("<think>it is\nL</think>\n<answer> L </answer>\n")
    assert parsed == Answer(thought="it is\nL", text="L")


def test_a_call():
    parsed = parse_action(f"<think></think><tool_call>\n{ZOOM}\n</tool_call>")
    assert parsed == Call(thought="", call=ToolCall(name="zoom", arguments={"bbox": [333, 0, 667, 333]}))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "L",
        "<answer>L</answer>",
        "<think>x</think>",
        "<think>x</think><answer>L",
        "<think>x<answer>L</answer></think>",
        "<think>x</think><answer><think>y</think></answer>",
        "<think>x</think><answer>L</answer><answer>L</answer>",
        f"<think>x</think><tool_call>{ZOOM}</tool_call><answer>L</answer>",
        f"<think>x</think><tool_call>{ZOOM}</tool_call><tool_call>{ZOOM}</tool_call>",
        "<answer>L</answer><think>x</think>",
        "so <think>x</think><answer>L</answer>",
        "<think>x</think> hence <answer>L</answer>",
        "<think>x</think><answer>L</answer>!",
        "<think>x</think><answer>L</tool_call>",
        "<think>x</think></answer>L<answer>",
        "<Think>x</Think><answer>L</answer>",
        '<think>x</think><tool_call>{"name":"zoom","arguments":{"a":"</answer>"}}</tool_call>',
    ],
)
def test_wrong_tags_are_malformed(text):
    assert isinstance(parse_action(text), Malformed)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("[]", "JSON object"),
        ('"zoom"', "JSON object"),
        ("{}", "needs a name"),
        ('{"name":3,"arguments":{}}', "needs a name"),
        ('{"name":"zoom"}', "needs arguments"),
        ('{"name":"zoom","arguments":[]}', "needs arguments"),
        ('{"name":"zoom","arguments":{},"more":1}', "not 'more'"),
        ('{"name":"zoom","name":"zoom","arguments":{}}', "stands twice"),
        ('{"name":"zoom","arguments":{"x":NaN}}', "no number"),
        ('{"name":"zoom","arguments":{"x":-Infinity}}', "no number"),
        ('{"name":"zoom","arguments":{"x":1e999}}', "too large"),
        ('{"name":"zoom","arguments":{"x":' + "9" * 5000 + "}}", "too large"),
        ('{"name":"zoom","arguments":{"x":"\\ud800"}}', "surrogate"),
        ('{"name":"zoom","arguments":{"\\udfff":1}}', "surrogate"),
        ('{"name":"zoom","arguments":' + "[" * 100_000, "not JSON"),
        ('{"name":"zoom","arguments":{"x":' + "[" * 50 + "]" * 50 + "}}", "too deeply"),
        (f"{ZOOM} {ZOOM}", "not JSON"),
    ],
)
def test_right_tags_around_no_call_are_a_bad_call(content, message):
    parsed = parse_action(f"<think>x</think><tool_call>{content}</tool_call>")
    assert isinstance(parsed, BadCall)
    assert message in parsed.error


@fuzz
@given(st.text())
def test_any_text_is_parsed(text):
    assert isinstance(parse_action(text), Malformed)


@fuzz
@given(st.lists(st.sampled_from([*TAGS, "x", " ", ZOOM]), max_size=8))
def test_only_the_four_tags_in_order_are_well_formed(pieces):
    parsed = parse_action("".join(pieces))
    tags = [piece for piece in pieces if piece in TAGS]
    if tags not in (TAGS[:4], TAGS[:2] + TAGS[4:]):
        assert isinstance(parsed, Malformed)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**17), 10**17) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=4,
)  # fmt: skip


@fuzz
@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=5), JSON_VALUES, max_size=3))
def test_arguments_come_through_unchanged(arguments):
    text = json.dumps({"name": "t", "arguments": arguments})
    if any(tag in text for tag in TAGS):
        return
    parsed = parse_action(f"<think>x</think><tool_call>{text}</tool_call>")
    assert isinstance(parsed, Call)
    assert parsed.call.arguments == arguments
