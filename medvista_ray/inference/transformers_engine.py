"""The transformers engine: samples batches from a policy whose weights it swaps between batches.

Plain and synchronous: owns the model, the image caches and the staged weights; owns no tasks, clients or clocks.
`generate_batch`, `check` and `swap` belong to one thread; `stage` may run beside them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from medvista_ray.errors import (
    EngineClosedError,
    ImageError,
    MedVistaError,
    RenderError,
    WeightsRefusedError,
)
from medvista_ray.inference.generation import distinct_prompts, generate
from medvista_ray.policy.forward import ImageFeatures, join_features
from medvista_ray.policy.image_processor import ImageProcessor, PreparedImages, concatenate
from medvista_ray.policy.inputs import PolicyInputs, PolicyRow, check_row, make_inputs
from medvista_ray.policy.loading import Policy
from medvista_ray.policy.weights import load_weights, named_weights, read_weights, weights_checksum
from medvista_ray.types.sampling import GenerateRequest, GenerateResult, SamplingSpec, WeightUpdate
from medvista_ray.types.trajectories import VersionSpan


class _Staged(NamedTuple):
    policy_version: int
    weights: dict[str, torch.Tensor]
    checksum: str


class TransformersEngine:
    """Closed until the first verified load; one version per action."""

    def __init__(
        self,
        policy: Policy,
        *,
        image_processor: ImageProcessor | None = None,
        feature_cache_bytes: int = 256 * 2**20,
    ) -> None:
        self._policy = policy
        self._processor = image_processor if image_processor is not None else ImageProcessor(policy.folder)
        self._expected = {name: torch.empty_like(t, device="meta") for name, t in named_weights(policy.model).items()}
        self._staged: _Staged | None = None
        self._version: int | None = None
        self._checksum = ""
        self._features: OrderedDict[str, ImageFeatures] = OrderedDict()  # of the loaded version only
        self._feature_bytes = 0
        self._feature_cache_bytes = feature_cache_bytes

    @property
    def policy_version(self) -> int | None:
        """Return the version that is loaded; None while closed."""
        return self._version

    @property
    def image_processor_version(self) -> str:
        """Return the version of the image processor; the learner's must be equal."""
        return self._processor.version

    # --- weights
    def stage(self, update: WeightUpdate) -> None:
        """Read weights into host memory and verify digest, names, shapes and dtypes; `WeightsRefusedError` if not."""
        weights = read_weights(Path(update.path), digest=update.digest, expected=self._expected)
        self._staged = _Staged(update.policy_version, weights, weights_checksum(weights))

    def swap(self, policy_version: int) -> str:
        """Load the staged weights, forget image features, open; return the checksum of what is loaded."""
        staged = self._staged
        if staged is None or staged.policy_version != policy_version:
            if self._version == policy_version:
                return self._checksum  # the first answer was lost
            found = "nothing" if staged is None else f"version {staged.policy_version}"
            raise WeightsRefusedError(f"version {policy_version} is not staged, {found} is")
        self._version = None  # a failure below leaves the engine closed
        self._features.clear()
        self._feature_bytes = 0
        load_weights(self._policy.model, staged.weights)
        checksum = weights_checksum(named_weights(self._policy.model))
        if checksum != staged.checksum:
            raise WeightsRefusedError(f"version {policy_version}: what is loaded differs from what was staged")
        self._staged = None
        self._version, self._checksum = policy_version, checksum
        return checksum

    # --- sampling
    def missing_images(self, requests: Sequence[GenerateRequest]) -> list[str]:
        """Return the digests whose bytes the next `generate_batch` of these requests needs."""
        return self._processor.missing(span.digest for request in requests for span in request.image_spans)

    def generate_batch(self, requests: Sequence[GenerateRequest], images: Mapping[str, bytes]) -> list[GenerateResult]:
        """Sample one action for each request, in order; raises what is wrong with the first bad one.

        Args:
            requests: the batch; requests of one sampling distribution run together.
            images: encoded bytes by digest, at least those of `missing_images`.
        """
        results: list[GenerateResult] = []
        for outcome in self.try_generate_batch(requests, images):
            if isinstance(outcome, MedVistaError):
                raise outcome
            results.append(outcome)
        return results

    def try_generate_batch(
        self, requests: Sequence[GenerateRequest], images: Mapping[str, bytes]
    ) -> list[GenerateResult | MedVistaError]:
        """Sample as `generate_batch` does; a request that cannot be sampled gets its error and harms no other."""
        if self._version is None:
            raise EngineClosedError("no verified weights are loaded; stage and swap first")
        digests = [span.digest for request in requests for span in request.image_spans]
        prepared, failed = self._processor.try_prepare_encoded(digests, images)
        outcomes: dict[int, GenerateResult | MedVistaError] = {}
        by_sampling: dict[SamplingSpec, list[int]] = {}
        for index, request in enumerate(requests):
            if (error := self._why_not(request, prepared, failed)) is not None:
                outcomes[index] = error
            else:
                by_sampling.setdefault(request.sampling, []).append(index)
        for members in by_sampling.values():
            answers = self._generate_same([requests[i] for i in members], prepared, self._version)
            outcomes.update(zip(members, answers, strict=True))
        return [outcomes[index] for index in range(len(requests))]

    def _generate_same(
        self, requests: Sequence[GenerateRequest], prepared: Mapping[str, PreparedImages], version: int
    ) -> list[GenerateResult]:
        rows, which = distinct_prompts(requests)
        inputs = make_inputs(rows, prepared, pad_left=True, device=self._policy.device)
        outcomes = generate(requests, self._policy, inputs, which, self._encode(inputs, prepared))
        return [
            GenerateResult(
                token_ids=token_ids,
                logprobs=logprobs,
                version_spans=(VersionSpan(policy_version=version, start=0, end=len(token_ids)),),
                prompt_length=int(inputs.lengths[which[index]]),
                stopped=stopped,
            )
            for index, (token_ids, logprobs, stopped) in enumerate(outcomes)
        ]

    @torch.no_grad()
    def _encode(self, inputs: PolicyInputs, prepared: Mapping[str, PreparedImages]) -> ImageFeatures | None:
        """Return features in the order of `inputs.digests`; the vision tower sees each image once per version."""
        if not inputs.digests:
            return None
        new = [digest for digest in inputs.digests if digest not in self._features]
        if new:
            images = concatenate([prepared[digest] for digest in new])
            features = self._policy.network.encode(images).split(images.num_features)
            self._features.update(zip(new, features, strict=True))
            self._feature_bytes += sum(part.size_bytes for part in features)
        found = join_features([self._features[digest] for digest in inputs.digests])
        for digest in inputs.digests:
            self._features.move_to_end(digest)
        while self._feature_bytes > self._feature_cache_bytes:
            _, oldest = self._features.popitem(last=False)
            self._feature_bytes -= oldest.size_bytes
        return found

    def _why_not(
        self, request: GenerateRequest, prepared: Mapping[str, PreparedImages], failed: Mapping[str, ImageError]
    ) -> MedVistaError | None:
        """Return why a request cannot be sampled; None when it can."""
        for span in request.image_spans:
            if span.digest in failed:
                return failed[span.digest]
        if request.max_new_tokens < 1:
            return RenderError(f"max_new_tokens must be >= 1, got {request.max_new_tokens}")
        try:
            check_row(
                PolicyRow(token_ids=request.token_ids, image_spans=request.image_spans),
                prepared,
                image_token_id=self._policy.image_token_id,
                vocab_size=self._policy.vocab_size,
                max_length=self._policy.max_length - request.max_new_tokens,
            )
        except RenderError as error:
            return error
        return None
