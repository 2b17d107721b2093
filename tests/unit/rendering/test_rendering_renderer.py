"""What a renderer promises: exact prefixes, no marker out of text, ids that an engine can stop and refuse."""

from __future__ import annotations

import json

import numpy as np
import pytest
from fuzz_cases import fuzz
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medvista_ray.policy.tiny import MARKER_TOKENS, SPECIAL_TOKENS
from medvista_ray.rendering.renderer import load_renderer
from medvista_ray.rendering.spans import check_stream
from medvista_ray.rollout.stream import TokenStream
from medvista_ray.testing.renderer_folder import write_renderer_folder
from medvista_ray.types.messages import ImagePart, ImageRef, Message, TextPart
from medvista_ray.types.sampling import GenerateResult
from medvista_ray.types.trajectories import VersionSpan

FAMILIES = ("qwen3_vl", "qwen2_5_vl")
ADDED = (*SPECIAL_TOKENS, *MARKER_TOKENS)
fast = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

texts = st.one_of(
    st.text(max_size=20),
    st.lists(st.sampled_from([*ADDED, "\n", " ", "a", "<|im", "_start|>", "<", "|>"]), max_size=5).map("".join),
)
images = st.tuples(st.integers(0, 9), st.integers(10, 300), st.integers(10, 300)).map(
    lambda parts: ImagePart(image=ImageRef(digest=f"{parts[0]:064x}", width=parts[1], height=parts[2]))
)
part_lists = st.lists(texts.map(lambda text: TextPart(text=text)) | images, max_size=4).map(tuple)
messages = st.builds(Message, role=st.sampled_from(["system", "user", "tool"]), parts=part_lists)
conversations = st.lists(messages, min_size=1, max_size=3)


def act(stream, renderer, text, *, stopped):
    ids = renderer.encode_action(text)
    ids = ids if stopped else ids[:-1]
    if len(ids) == 0:
        ids = np.array([100], np.int32)
    spans = (VersionSpan(policy_version=0, start=0, end=len(ids)),)
    stream.append_action(
        GenerateResult(
            token_ids=ids,
            logprobs=np.zeros(len(ids), np.float32),
            version_spans=spans,
            prompt_length=len(stream),
            stopped=stopped,
        )
    )


@fast
@given(
    family=st.sampled_from(FAMILIES),
    opening=conversations,
    turns=st.lists(st.tuples(texts, st.booleans(), messages), max_size=4),
)
def test_the_prompt_of_a_turn_has_the_stream_before_as_exact_prefix(renderers, family, opening, turns):
    renderer, stream = renderers[family], TokenStream()
    stream.append_observation(renderer.render_prompt(opening))
    for text, stopped, message in turns:
        act(stream, renderer, text, stopped=stopped)
        before, spans = stream.token_ids().tolist(), stream.image_spans
        stream.append_observation(renderer.render_observation((message,), action_has_stop=stopped))
        assert stream.token_ids().tolist()[: len(before)] == before
        assert stream.image_spans[: len(spans)] == spans
        check_stream(stream.token_ids(), stream.image_spans, image_token_id=renderer.image_token_id)
        # the end of the action's turn stands in the stream once, sampled or appended
        assert (before[-1] == renderer.end_token_id) is stopped
        assert stopped or stream.token_ids()[len(before)] == renderer.end_token_id


def ids_of(folder):
    raw = json.loads((folder / "tokenizer.json").read_text())
    return {token["content"]: token["id"] for token in raw["added_tokens"]}


@fuzz
@given(family=st.sampled_from(FAMILIES), conversation=conversations)
def test_no_text_makes_a_marker(renderers, family, conversation):
    """Every id of an added token is one that the structure put there, whatever the parts say or how they are split."""
    renderer = renderers[family]
    found = renderer.render_prompt(conversation).token_ids.tolist()
    ids = renderer._ids
    num_images = sum(len(message.images) for message in conversation)
    num_tools = sum(message.role == "tool" for message in conversation)
    features = sum(
        renderer.image_length(image.width, image.height) for message in conversation for image in message.images
    )
    expected = dict.fromkeys(ADDED, 0) | {
        "<|im_start|>": len(conversation) + 1,
        "<|im_end|>": len(conversation),
        "<|vision_start|>": num_images,
        "<|vision_end|>": num_images,
        "<|image_pad|>": features,
        "<tool_response>": num_tools,
        "</tool_response>": num_tools,
    }
    assert {text: found.count(ids[text]) for text in ADDED} == expected


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("marker", ADDED)
def test_a_marker_as_text_or_split_over_parts_is_text(renderers, family, marker):
    renderer = renderers[family]
    marker_id = renderer._ids[marker]
    plain = renderer.render_prompt([Message(role="user", parts=(TextPart(text="x"),))]).token_ids.tolist()
    for cut in range(len(marker)):
        parts = (TextPart(text=marker[:cut]), TextPart(text=marker[cut:]))
        for role in ("system", "user", "tool", "assistant"):
            message = Message(role=role, parts=parts)
            allowed = plain.count(marker_id) + (role == "tool" and "tool_response" in marker)
            for rendered in (
                renderer.render_prompt([message]),
                renderer.render_observation([message], action_has_stop=True),
            ):
                assert rendered.token_ids.tolist().count(marker_id) <= allowed
            assert marker in renderer.decode_stream(renderer.render_prompt([message]).token_ids)


def test_a_tokenizer_that_ignores_merges_makes_no_marker_either(tmp_path):
    """Some vocabularies hold the special tokens as ordinary entries, too."""
    folder = write_renderer_folder(tmp_path)
    raw = json.loads((folder / "tokenizer.json").read_text())
    raw["model"]["ignore_merges"] = True
    (folder / "tokenizer.json").write_text(json.dumps(raw))
    renderer = load_renderer(folder)
    for marker in ADDED:
        message = Message(role="user", parts=(TextPart(text=marker),))
        found = renderer.render_prompt([message]).token_ids.tolist()
        plain = renderer.render_prompt([Message(role="user", parts=(TextPart(text="x"),))]).token_ids.tolist()
        assert found.count(renderer._ids[marker]) == plain.count(renderer._ids[marker]), marker


def test_the_template_of_a_conversation(renderer):
    picture = ImagePart(image=ImageRef(digest="0" * 64, width=84, height=84))
    rendered = renderer.render_prompt(
        [
            Message(role="system", parts=(TextPart(text="Tools: zoom."),)),
            Message(role="user", parts=(picture, TextPart(text="Which letter?"))),
        ]
    )
    pads = "<|image_pad|>" * 9
    assert renderer.decode_stream(rendered.token_ids) == (
        "<|im_start|>system\nTools: zoom.<|im_end|>\n"
        f"<|im_start|>user\n<|vision_start|>{pads}<|vision_end|>Which letter?<|im_end|>\n<|im_start|>assistant\n"
    )
    (span,) = rendered.image_spans
    assert (span.digest, span.length) == ("0" * 64, 9)
    observed = renderer.render_observation(
        [Message(role="tool", parts=(picture, TextPart(text="done")))], action_has_stop=False
    )
    assert renderer.decode_stream(observed.token_ids) == (
        f"<|im_end|>\n<|im_start|>user\n<tool_response>\n<|vision_start|>{pads}<|vision_end|>done\n</tool_response>"
        "<|im_end|>\n<|im_start|>assistant\n"
    )
    assert rendered.token_ids.dtype == observed.token_ids.dtype == np.int32


def test_banned_and_stop_ids(renderer):
    ids = renderer._ids
    assert set(renderer.banned_token_ids) == {
        ids[text] for text in ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
    }
    assert set(renderer.stop_token_ids) == {ids["<|im_end|>"], ids["<|endoftext|>"]}
    assert renderer.end_token_id == ids["<|im_end|>"]
    assert renderer.image_token_id == ids["<|image_pad|>"]
    assert not set(renderer.banned_token_ids) & set(renderer.stop_token_ids)


benign = st.text(max_size=60).filter(lambda text: not any(token in text for token in SPECIAL_TOKENS))


@fast
@given(family=st.sampled_from(FAMILIES), text=benign, tagged=st.booleans())
def test_decoding_an_encoded_action_gives_its_text(renderers, family, text, tagged):
    renderer = renderers[family]
    text = f"<think>{text}</think><answer>L</answer>" if tagged else text
    ids = renderer.encode_action(text)
    assert ids[-1] == renderer.end_token_id
    assert ids.dtype == np.int32
    assert renderer.decode_action(ids) == text
    assert not set(ids[:-1].tolist()) & {*renderer.banned_token_ids, *renderer.stop_token_ids}
    if tagged:
        assert renderer._ids["<think>"] in ids


@pytest.mark.parametrize("special", SPECIAL_TOKENS)
def test_an_experts_text_makes_no_special_token(renderer, special):
    ids = renderer.encode_action(f"a{special}b")
    assert renderer._ids[special] not in ids[:-1].tolist()
    assert renderer.decode_action(ids) == f"a{special}b"


def test_pieces_of_calls_are_one_token(tmp_path):
    piece = '{"name":"zoom","arguments":{"bbox":['
    renderer = load_renderer(write_renderer_folder(tmp_path, plain_tokens=(piece,)))
    assert len(renderer.encode_action(piece)) == 2
    said = renderer.render_prompt([Message(role="user", parts=(TextPart(text=piece),))])
    assert renderer._ids[piece] not in said.token_ids.tolist()


@pytest.mark.parametrize(
    ("width", "height", "length"),
    [(84, 84, 9), (28, 28, 1), (1, 1, 1), (112, 112, 16), (1000, 1000, 16), (84, 42, 6), (2000, 10, 15), (13, 14, 2)],
)
def test_the_length_of_an_image(renderer, width, height, length):
    assert renderer.image_length(width, height) == length


BROKEN = {
    "no config": (lambda folder: (folder / "config.json").unlink(), r"has no config\.json"),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), r"has no tokenizer\.json"),
    "no processor": (lambda folder: (folder / "preprocessor_config.json").unlink(), "no image processor settings"),
    "another family": (
        lambda folder: (folder / "config.json").write_text('{"model_type": "llava"}'),
        "'llava' model; supported families: qwen3_vl, qwen2_5_vl",
    ),
    "no family": (lambda folder: (folder / "config.json").write_text("{}"), "None model"),
    "config is a list": (lambda folder: (folder / "config.json").write_text("[]"), "holds no JSON object"),
    "config is cut": (lambda folder: (folder / "config.json").write_text("{"), "is not JSON"),
    "tokenizer is cut": (lambda folder: (folder / "tokenizer.json").write_text('{"added'), "is not JSON"),
    "tokenizer is none": (lambda folder: (folder / "tokenizer.json").write_text("{}"), r"lacks <\|im_start\|>"),
    "tokenizer without a model": (
        lambda folder: (folder / "tokenizer.json").write_text(
            json.dumps({"added_tokens": json.loads((folder / "tokenizer.json").read_text())["added_tokens"]})
        ),
        "cannot be read",
    ),
    "processor is binary": (
        lambda folder: (folder / "preprocessor_config.json").write_bytes(b"\xff"),
        "is not JSON",
    ),
    "processor without sizes": (
        lambda folder: (folder / "preprocessor_config.json").write_text('{"patch_size": 14, "merge_size": 2}'),
        "no usable min_pixels: None",
    ),
    "processor with nonsense": (
        lambda folder: (folder / "preprocessor_config.json").write_text(
            '{"patch_size": "14", "merge_size": 2, "min_pixels": 1, "max_pixels": 9}'
        ),
        "no usable patch_size: '14'",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_folder_that_is_none_is_one_line(tmp_path, name):
    from medvista_ray.errors import ConfigError

    folder = write_renderer_folder(tmp_path / "policy")
    load_renderer(folder)
    damage, what = BROKEN[name]
    damage(folder)
    with pytest.raises(ConfigError, match=what) as caught:
        load_renderer(folder)
    assert str(caught.value).startswith("policy.path: ")
    assert "\n" not in str(caught.value)
