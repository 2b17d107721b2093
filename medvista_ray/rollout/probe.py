"""The parity probe: seeded two-turn sequences with images, sampled by an engine, for the learner to score.

Sixteen tokens a turn are sampled without a stop, so that every probe is the same size whatever the policy would do.
Knows envs, a renderer and a policy client; the comparison is the caller's.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from medvista_ray.rendering.renderer import QwenRenderer
from medvista_ray.rollout.stream import TokenStream
from medvista_ray.types.messages import ImagePart, Message, Part, TextPart
from medvista_ray.types.protocols import BlobStore, PolicyClient, TaskRecord
from medvista_ray.types.samples import TrainingSample
from medvista_ray.types.sampling import GenerateRequest, SamplingSpec

NUM_SEQUENCES = 4
NUM_TURNS = 2
TOKENS_PER_TURN = 32


async def sample_probe(
    records: Sequence[TaskRecord],
    *,
    make_env: Callable[[], Any],
    renderer: QwenRenderer,
    client: PolicyClient,
    blobs: BlobStore,
    temperature: float,
    seed: int,
) -> list[TrainingSample]:
    """Sample one sequence for each record, side by side; int32 ids and the engine's logprobs, ready to be scored."""
    return list(
        await asyncio.gather(
            *(
                _sample_one(
                    index,
                    record,
                    env=make_env(),
                    renderer=renderer,
                    client=client,
                    blobs=blobs,
                    temperature=temperature,
                    seed=seed,
                )
                for index, record in enumerate(records)
            )
        )
    )


async def _sample_one(
    index: int,
    record: TaskRecord,
    *,
    env: Any,
    renderer: QwenRenderer,
    client: PolicyClient,
    blobs: BlobStore,
    temperature: float,
    seed: int,
) -> TrainingSample:
    source = env.unwrapped
    for data in record.blobs.values():
        source.blobs.put(data)
    env.reset(options={"task": record.task, "reference": record.reference})
    messages: tuple[Message, ...] = source.observe()
    env.close()
    images = [image for message in messages for image in message.images]
    for image in images:
        await blobs.put_if_absent(image.digest, source.blobs.get(image.digest))
    # The second turn shows the view again and asks again: one image, two places, two turns.
    parts: tuple[Part, ...] = (*(ImagePart(image=image) for image in images), TextPart(text=record.task.question))
    again = (Message(role="tool", parts=parts),)
    sampling = SamplingSpec(temperature=temperature, banned_token_ids=renderer.banned_token_ids)
    stream = TokenStream()
    for turn in range(NUM_TURNS):
        rendered = (
            renderer.render_observation(again, action_has_stop=False) if turn else renderer.render_prompt(messages)
        )
        stream.append_observation(rendered)
        result = await client.generate(
            GenerateRequest(
                group_id=f"probe-{index}",
                member=0,
                turn_index=turn,
                token_ids=stream.token_ids(),
                image_spans=stream.image_spans,
                max_new_tokens=TOKENS_PER_TURN // NUM_TURNS,
                sampling=sampling,
                seed=seed,
            )
        )
        stream.append_action(result)
    length = len(stream)
    return TrainingSample(
        group_id=f"probe-{index}",
        member=0,
        token_ids=stream.token_ids(),
        loss_mask=stream.loss_mask(),
        logprobs=stream.logprobs(),
        advantages=np.zeros(length, np.float32),
        image_spans=stream.image_spans,
        version_spans=stream.version_spans,
    )


def max_logprob_difference(samples: Sequence[TrainingSample], learner_logprobs: Sequence[np.ndarray]) -> float:
    """Return max |engine - learner| over the sampled tokens, nats; inf when one of them is no finite number."""
    return max(
        _largest((sample.logprobs - logprobs)[sample.loss_mask])
        for sample, logprobs in zip(samples, learner_logprobs, strict=True)
    )


def _largest(diffs: np.ndarray) -> float:
    """Return max |diff|; NaN would be lost in `max`, which keeps whatever came before it."""
    return float(np.abs(diffs).max()) if np.isfinite(diffs).all() else math.inf
