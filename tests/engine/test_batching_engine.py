"""Async batching, swaps between batches, lock-step, death; the router; a set of local engines."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from medvista_ray.errors import BlobMissingError, EngineDiedError, RenderError, WeightsRefusedError
from medvista_ray.inference.batcher import BatchingEngine
from medvista_ray.inference.local_engines import LocalEngines
from medvista_ray.inference.router import Router
from medvista_ray.inference.transformers_engine import TransformersEngine
from medvista_ray.policy.inputs import PolicyRow
from medvista_ray.policy.loading import Policy, load_policy
from medvista_ray.policy.weights import named_weights, weights_checksum, write_weights
from medvista_ray.types.delivery import WaitReason
from medvista_ray.types.protocols import EngineSet
from medvista_ray.types.sampling import GenerateRequest, GenerateResult, SamplingSpec, WeightUpdate

RowsOf = Callable[[Policy], list[PolicyRow]]
SAMPLING = SamplingSpec(banned_token_ids=(3, 4, 5, 6), stop_token_ids=(2,))


class MemoryBlobs:
    """Blobs in a dict; counts what was asked for."""

    def __init__(self, blobs: dict[str, bytes]) -> None:
        self.blobs = blobs
        self.asked: list[str] = []

    async def put_if_absent(self, digest: str, data: bytes) -> None:
        self.blobs.setdefault(digest, data)

    async def get_many(self, digests: Sequence[str]) -> list[bytes]:
        self.asked += digests
        for digest in digests:
            if digest not in self.blobs:
                raise BlobMissingError(f"blob {digest[:12]} is not in the store")
        return [self.blobs[digest] for digest in digests]


class RecordingEngine(TransformersEngine):
    """The real engine; remembers its batches and can be made to hold or to break in the executor thread."""

    def __init__(self, policy: Policy) -> None:
        super().__init__(policy)
        self.batches: list[list[tuple[str, int]]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.breaks = False

    def try_generate_batch(self, requests, images):  # type: ignore[no-untyped-def]
        self.batches.append([(request.group_id, request.member) for request in requests])
        self.entered.set()
        assert self.gate.wait(20)
        if self.breaks:
            raise RuntimeError("the device is gone")
        return super().try_generate_batch(requests, images)


def write_update(policy: Policy, folder: Path, version: int) -> WeightUpdate:
    path = folder / f"v{version}.safetensors"
    return WeightUpdate(policy_version=version, path=str(path), digest=write_weights(named_weights(policy.model), path))


def make_request(row: PolicyRow, member: int, *, group: int = 0, max_new_tokens: int = 5) -> GenerateRequest:
    return GenerateRequest(
        group_id=f"0/{group}/0",
        member=member,
        turn_index=0,
        token_ids=row.token_ids,
        image_spans=row.image_spans,
        max_new_tokens=max_new_tokens,
        sampling=SAMPLING,
    )


@pytest.fixture
def blobs(images: dict[str, bytes]) -> MemoryBlobs:
    return MemoryBlobs(dict(images))


@pytest.fixture
def plain(qwen3: Policy) -> RecordingEngine:
    return RecordingEngine(qwen3)


@pytest.fixture
async def engine(
    plain: RecordingEngine, qwen3: Policy, blobs: MemoryBlobs, tmp_path: Path
) -> AsyncIterator[BatchingEngine]:
    """Serve version 0."""
    batching = BatchingEngine(plain, blobs=blobs, max_batch=4)
    await batching.stage(write_update(qwen3, tmp_path, 0))
    await batching.swap(0)
    yield batching
    await batching.close()


async def test_waiting_requests_run_together_in_order_and_images_are_fetched_once(
    engine: BatchingEngine, plain: RecordingEngine, blobs: MemoryBlobs, qwen3: Policy, rows: RowsOf
) -> None:
    row = rows(qwen3)[1]
    requests = [make_request(row, member, group=10 - member) for member in range(6)]
    answers = await asyncio.gather(*(engine.generate(request) for request in requests))
    assert sorted(len(batch) for batch in plain.batches) == [2, 4]
    numbers = [[int(group.split("/")[1]) for group, _ in batch] for batch in plain.batches]
    assert numbers == [[5, 6, 7, 8], [9, 10]]  # as numbers: "10" sorts after "9"
    assert sorted(blobs.asked) == sorted({span.digest for span in row.image_spans})
    alone = plain.generate_batch([requests[3]], {})[0]
    assert answers[3].token_ids.tolist() == alone.token_ids.tolist()


async def test_requests_wait_until_the_first_verified_load(
    plain: RecordingEngine, blobs: MemoryBlobs, qwen3: Policy, rows: RowsOf, tmp_path: Path
) -> None:
    batching = BatchingEngine(plain, blobs=blobs, max_batch=4)
    waiting = asyncio.create_task(batching.generate(make_request(rows(qwen3)[0], 0)))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    assert batching.num_waiting == 1
    await batching.stage(write_update(qwen3, tmp_path, 3))
    assert await batching.swap(3) == weights_checksum(named_weights(qwen3.model))
    answer = await waiting
    assert answer.version_spans[0].policy_version == 3
    await batching.close()
    await batching.close()


async def test_a_pending_swap_goes_before_the_next_batch_and_stage_runs_while_serving(
    engine: BatchingEngine, plain: RecordingEngine, qwen3: Policy, rows: RowsOf, tmp_path: Path
) -> None:
    row = rows(qwen3)[0]
    plain.gate.clear()
    running = asyncio.create_task(engine.generate(make_request(row, 0)))
    assert await asyncio.to_thread(plain.entered.wait, 10)
    await engine.stage(write_update(qwen3, tmp_path, 1))  # the executor thread is held inside the batch
    later = [asyncio.create_task(engine.generate(make_request(row, member))) for member in range(1, 7)]
    swap = asyncio.create_task(engine.swap(1))
    await asyncio.sleep(0.02)
    assert not swap.done()
    plain.gate.set()
    assert (await running).version_spans[0].policy_version == 0
    await swap
    answers = await asyncio.gather(*later)
    assert {answer.version_spans[0].policy_version for answer in answers} == {1}


async def test_a_refused_swap_leaves_the_engine_serving(engine: BatchingEngine, qwen3: Policy, rows: RowsOf) -> None:
    with pytest.raises(WeightsRefusedError, match="version 9 is not staged"):
        await engine.swap(9)
    answer = await engine.generate(make_request(rows(qwen3)[0], 0))
    assert answer.version_spans[0].policy_version == 0


async def test_a_cancelled_request_does_not_poison_its_batch(
    engine: BatchingEngine, plain: RecordingEngine, qwen3: Policy, rows: RowsOf
) -> None:
    row = rows(qwen3)[0]
    plain.gate.clear()
    tasks = [asyncio.create_task(engine.generate(make_request(row, member))) for member in range(4)]
    assert await asyncio.to_thread(plain.entered.wait, 10)
    queued = [asyncio.create_task(engine.generate(make_request(row, member))) for member in range(4, 7)]
    await asyncio.sleep(0)
    tasks[1].cancel()  # while it runs
    queued[0].cancel()  # while it waits
    plain.gate.set()
    answers = await asyncio.gather(*tasks, *queued, return_exceptions=True)
    kinds = [type(answer) for answer in answers]
    assert kinds.count(asyncio.CancelledError) == 2
    assert kinds.count(GenerateResult) == 5
    assert [member for _, member in plain.batches[1]] == [5, 6]


async def test_a_missing_image_or_a_broken_row_fails_its_own_request_only(
    engine: BatchingEngine, blobs: MemoryBlobs, qwen3: Policy, rows: RowsOf
) -> None:
    batch = rows(qwen3)
    del blobs.blobs[batch[3].image_spans[0].digest]
    broken = PolicyRow(token_ids=batch[0].token_ids[:-12], image_spans=batch[0].image_spans)
    picked = (batch[3], batch[2], batch[0], broken)
    answers = await asyncio.gather(
        *(engine.generate(make_request(row, i)) for i, row in enumerate(picked)), return_exceptions=True
    )
    assert [type(answer) for answer in answers] == [BlobMissingError, GenerateResult, GenerateResult, RenderError]
    assert not engine.is_dead


async def test_an_engine_that_broke_answers_that_it_died(
    engine: BatchingEngine, plain: RecordingEngine, qwen3: Policy, rows: RowsOf, tmp_path: Path
) -> None:
    plain.breaks = True
    row = rows(qwen3)[0]
    answers = await asyncio.gather(
        *(engine.generate(make_request(row, member)) for member in range(6)), return_exceptions=True
    )
    assert {type(answer) for answer in answers} == {EngineDiedError}
    assert "the device is gone" in str(answers[0])
    assert engine.is_dead
    for call in (
        engine.generate(make_request(row, 0)),
        engine.swap(1),
        engine.stage(write_update(qwen3, tmp_path, 1)),
    ):
        with pytest.raises(EngineDiedError, match="the device is gone"):
            await call


async def test_closing_fails_what_waits_and_what_runs(
    engine: BatchingEngine, plain: RecordingEngine, qwen3: Policy, rows: RowsOf
) -> None:
    row = rows(qwen3)[0]
    plain.gate.clear()
    running = asyncio.create_task(engine.generate(make_request(row, 0)))
    assert await asyncio.to_thread(plain.entered.wait, 10)
    waiting = asyncio.create_task(engine.generate(make_request(row, 1)))
    await asyncio.sleep(0)
    await engine.close()
    plain.gate.set()
    for task in (running, waiting):
        with pytest.raises(EngineDiedError, match="closed"):
            await task


async def test_lock_step_runs_when_every_live_episode_waits_and_repeats_exactly(
    qwen3: Policy, blobs: MemoryBlobs, rows: RowsOf, tmp_path: Path
) -> None:
    batch = rows(qwen3)
    update = write_update(qwen3, tmp_path, 0)

    async def run(seed: int) -> tuple[list[list[tuple[str, int]]], list[bytes]]:
        plain = RecordingEngine(load_policy(qwen3.folder, device="cpu"))
        live = len(batch)
        engine = BatchingEngine(plain, blobs=blobs, max_batch=4, lockstep=lambda: live)
        await engine.stage(update)
        await engine.swap(0)
        rng = np.random.default_rng(seed)
        delays = rng.random(len(batch)) * 0.02

        async def episode(i: int) -> list[bytes]:
            nonlocal live
            parts = []
            for turn in range(1 + i % 2):
                await asyncio.sleep(float(delays[i]))
                request = make_request(batch[i], i, max_new_tokens=4 + turn)
                answer = await engine.generate(request)
                parts.append(answer.token_ids.tobytes() + answer.logprobs.tobytes())
            live -= 1
            return parts

        parts = await asyncio.gather(*(episode(i) for i in range(len(batch))))
        await engine.close()
        return plain.batches, [part for of_episode in parts for part in of_episode]

    first, second = await run(1), await run(2)
    assert first == second
    assert [[member for _, member in members] for members in first[0]] == [[0, 1, 2, 3], [4, 5], [1, 3, 5]]


async def test_local_engines_quarantine_recover_and_name_what_all_refuse(
    policy_folders: dict[str, Path], blobs: MemoryBlobs, rows: RowsOf, tmp_path: Path
) -> None:
    folder = policy_folders["qwen3_vl"]
    source = load_policy(folder, device="cpu")
    made: list[RecordingEngine] = []

    def make(engine_id: str) -> BatchingEngine:
        made.append(RecordingEngine(load_policy(folder, device="cpu")))
        return BatchingEngine(made[-1], blobs=blobs, max_batch=4, engine_id=engine_id)

    engines = LocalEngines(make, num_engines=2)
    await engines.stage(write_update(source, tmp_path, 0))
    await engines.swap(0)
    assert len(set(engines.checksums.values())) == 1
    assert [engine.engine_id for engine in engines.engine_set().engines] == ["engine-0", "engine-1"]
    epoch = engines.engine_set().epoch

    bad = replace(write_update(source, tmp_path, 1), digest="0" * 64)
    with pytest.raises(WeightsRefusedError, match="version 1: every engine refused"):
        await engines.stage(bad)
    assert engines.engine_set().epoch == epoch

    made[1]._expected["extra"] = torch.zeros(1)  # this one's model is another
    with torch.no_grad():
        source.model.lm_head.weight.mul_(1.1)
    await engines.stage(write_update(source, tmp_path, 1))
    assert [engine.engine_id for engine in engines.engine_set().engines] == ["engine-0"]
    assert engines.engine_set().epoch == epoch + 1
    assert await engines.recover() == 1  # in between stage and swap: version 0, with 1 staged
    await engines.swap(1)
    checksum = weights_checksum(named_weights(source.model))
    assert engines.checksums == {"engine-0": checksum, "engine-2": checksum}

    made[0].breaks = True
    victim = engines.engine_set().engines[0]
    with pytest.raises(EngineDiedError):
        await victim.generate(make_request(rows(source)[0], 0))
    assert await engines.recover() == 1
    assert await engines.recover() == 0
    names = [engine.engine_id for engine in engines.engine_set().engines]
    assert names == ["engine-2", "engine-3"]
    answers = [await engine.generate(make_request(rows(source)[0], 0)) for engine in engines.engine_set().engines]
    assert answers[0].token_ids.tolist() == answers[1].token_ids.tolist()
    assert {answer.version_spans[0].policy_version for answer in answers} == {1}
    await engines.close()


class ScriptedEngine:
    """An engine handle that answers, dies or holds as told."""

    def __init__(self, engine_id: str) -> None:
        self.engine_id = engine_id
        self.is_gone = False
        self.served: list[tuple[str, int]] = []

    async def generate(self, request: GenerateRequest) -> GenerateResult:
        await asyncio.sleep(0)
        if self.is_gone:
            raise EngineDiedError(f"{self.engine_id} is gone")
        self.served.append((request.group_id, request.member))
        return GenerateResult(
            token_ids=np.array([9], np.int32),
            logprobs=np.zeros(1, np.float32),
            version_spans=(),
            prompt_length=len(request.token_ids),
            stopped=True,
        )

    async def stage(self, update: WeightUpdate) -> None:
        raise AssertionError("a router never stages")

    async def swap(self, policy_version: int) -> str:
        raise AssertionError("a router never swaps")


def turn(member: int, *, group: int = 0) -> GenerateRequest:
    return make_request(PolicyRow(token_ids=np.array([9, 10], np.int32)), member, group=group)


async def test_an_episode_stays_and_a_new_one_takes_the_least_loaded() -> None:
    left, right = ScriptedEngine("a"), ScriptedEngine("b")
    router = Router(EngineSet(epoch=0, engines=(left, right)), no_engine_wait_s=1.0)
    for _ in range(3):
        for member in range(4):
            await router.generate(turn(member))
    assert left.served == [("0/0/0", 0), ("0/0/0", 2)] * 3
    assert right.served == [("0/0/0", 1), ("0/0/0", 3)] * 3
    third = ScriptedEngine("c")
    router.set_engines(EngineSet(epoch=1, engines=(left, right, third)))
    router.set_engines(EngineSet(epoch=0, engines=()))  # late, older
    await router.generate(turn(0, group=1))
    await router.generate(turn(0))
    assert third.served == [("0/1/0", 0)]
    assert left.served[-1] == ("0/0/0", 0)
    router.forget_group("0/0/0")
    await router.generate(turn(0, group=2))
    assert left.served[-1] == ("0/2/0", 0)


async def test_a_dead_engine_s_turn_is_issued_once_elsewhere() -> None:
    left, right, third = (ScriptedEngine(name) for name in "abc")
    router = Router(EngineSet(epoch=0, engines=(left, right, third)), no_engine_wait_s=1.0)
    left.is_gone = True
    await router.generate(turn(0))
    assert right.served == [("0/0/0", 0)]
    right.is_gone = third.is_gone = True
    with pytest.raises(EngineDiedError, match="c is gone"):
        await router.generate(turn(0))


async def test_an_engine_that_only_looked_dead_comes_back_when_the_driver_says_so_again() -> None:
    engine = ScriptedEngine("a")
    router = Router(EngineSet(epoch=4, engines=(engine,)), no_engine_wait_s=0.05)
    engine.is_gone = True  # a connection that broke for a moment
    with pytest.raises(EngineDiedError, match="no_engine"):
        await router.generate(turn(0))
    engine.is_gone = False
    router.set_engines(EngineSet(epoch=3, engines=(engine,)))
    with pytest.raises(EngineDiedError, match="no_engine"):
        await router.generate(turn(0))
    router.set_engines(EngineSet(epoch=4, engines=(engine,)))
    await router.generate(turn(0))
    assert engine.served == [("0/0/0", 0)]


async def test_without_engines_a_turn_waits_with_a_reason_until_its_time_is_up() -> None:
    router = Router(no_engine_wait_s=5.0)
    waiting = [asyncio.create_task(router.generate(turn(member))) for member in range(2)]
    await asyncio.sleep(0.01)
    assert router.wait_reasons == {WaitReason.NO_ENGINE: 2}
    engine = ScriptedEngine("a")
    router.set_engines(EngineSet(epoch=3, engines=(engine,)))
    await asyncio.gather(*waiting)
    assert len(engine.served) == 2
    assert not router.wait_reasons
    with pytest.raises(EngineDiedError, match="no_engine"):
        await Router(no_engine_wait_s=0.01).generate(turn(0))
