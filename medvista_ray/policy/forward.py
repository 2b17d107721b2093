"""The one forward pass of engine and learner: vision tower, embedding of features, language model, head.

Reads a Qwen-VL model through its modules; holds no weights of its own and no caches. `PolicyNetwork.forward` is the
only entry, so that hooks on the root (FSDP2) run before any parameter is used.

Axes: B rows, W padded width, D hidden, V vocabulary, N features, F image-feature tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from medvista_ray.policy.image_processor import PreparedImages
from medvista_ray.policy.inputs import PolicyInputs


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ImageFeatures:
    """What the vision tower makes of images, one after the other."""

    hidden: torch.Tensor  # [N, D]
    deepstack: tuple[torch.Tensor, ...] = ()  # [N, D] for each of the first decoder layers; empty for Qwen2.5-VL

    @property
    def size_bytes(self) -> int:
        """Return the memory of the features."""
        return self.hidden.nbytes + sum(layer.nbytes for layer in self.deepstack)

    def split(self, num_features: Sequence[int]) -> list[ImageFeatures]:
        """Return one record per image; each owns its memory."""
        hidden = torch.split(self.hidden, list(num_features))
        deepstack = [torch.split(layer, list(num_features)) for layer in self.deepstack]
        return [
            ImageFeatures(hidden=part.clone(), deepstack=tuple(layer[i].clone() for layer in deepstack))
            for i, part in enumerate(hidden)
        ]


def join_features(features: Sequence[ImageFeatures]) -> ImageFeatures:
    """Join at least one record, in order."""
    return ImageFeatures(
        hidden=torch.cat([part.hidden for part in features]),
        deepstack=tuple(torch.cat(layers) for layers in zip(*(part.deepstack for part in features), strict=True)),
    )


class PolicyNetwork(nn.Module):
    """A Qwen-VL model behind one entry. Wrap this with `fully_shard` after its parts; `.model` is the model itself."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        inputs: PolicyInputs,
        *,
        features: ImageFeatures | None = None,
        cache: Any = None,
        positions_to_project: torch.Tensor | None = None,
        dummy_vision: bool = False,
    ) -> torch.Tensor:
        """Return logits [K, V] at the K given indices of the flattened [B * W], or hidden states [B, W, D] without any.

        Args:
            inputs: the padded batch.
            features: of `inputs.digests`, in order; None runs the vision tower on `inputs.images`.
            cache: a Hugging Face cache to fill.
            positions_to_project: int64 [K]; None gives hidden states.
            dummy_vision: run the vision tower with weight 0 when no row has an image, so that every rank of a
                sharded model takes part in the same collectives.
        """
        core = self.model.model
        embeds = core.language_model.embed_tokens(inputs.token_ids)
        kwargs: dict[str, Any] = {}
        if inputs.images is not None:
            found = features if features is not None else self.encode(inputs.images)
            embeds, kwargs = _place_features(embeds, inputs, found)
        elif dummy_vision:
            dummy = self.encode(self._dummy_images())
            touched = torch.stack([part.sum() for part in (dummy.hidden, *dummy.deepstack)]).sum()
            embeds = embeds + 0.0 * touched.to(embeds.dtype)
        hidden: torch.Tensor = core.language_model(
            inputs_embeds=embeds,
            position_ids=inputs.positions,
            attention_mask=inputs.attention_mask,
            past_key_values=cache,
            use_cache=cache is not None,
            **kwargs,
        ).last_hidden_state
        if positions_to_project is None:
            return hidden
        return self.project(hidden.flatten(0, 1)[positions_to_project])

    def encode(self, images: PreparedImages) -> ImageFeatures:
        """Run the vision tower once over all images."""
        device = self.model.device
        output = self.model.model.visual(images.pixel_values.to(device), grid_thw=images.grid_thw.to(device))
        return ImageFeatures(
            hidden=output.pooler_output, deepstack=tuple(getattr(output, "deepstack_features", None) or ())
        )

    def step(
        self, token_ids: torch.Tensor, positions: torch.Tensor, attention_mask: torch.Tensor | None, cache: Any
    ) -> torch.Tensor:
        """Return logits [B, V] after one more token [B] of each row at positions [B], given the cache."""
        language_model = self.model.model.language_model
        hidden = language_model(
            inputs_embeds=language_model.embed_tokens(token_ids[:, None]),
            position_ids=positions[None, :, None].expand(3, -1, -1),
            attention_mask=attention_mask,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        return self.project(hidden[:, -1])

    def project(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return logits [..., V] of hidden states [..., D]."""
        logits: torch.Tensor = self.model.lm_head(hidden)
        return logits

    def _dummy_images(self) -> PreparedImages:
        vision = self.model.config.vision_config
        side = vision.spatial_merge_size
        channels = getattr(vision, "in_channels", 3)
        size = channels * vision.temporal_patch_size * vision.patch_size**2
        return PreparedImages(
            pixel_values=torch.zeros(side * side, size),
            grid_thw=torch.tensor([[1, side, side]]),
            merge_size=side,
        )


def _place_features(
    embeds: torch.Tensor, inputs: PolicyInputs, features: ImageFeatures
) -> tuple[torch.Tensor, dict[str, Any]]:
    """Put features at their slots; also return what the first decoder layers add (deepstack)."""
    flat = embeds.flatten(0, 1)
    picked = features.hidden[inputs.feature_index].to(embeds.dtype)
    placed = flat.index_copy(0, inputs.feature_slots, picked).view_as(embeds)
    if not features.deepstack:
        return placed, {}
    is_feature = torch.zeros(flat.shape[0], dtype=torch.bool, device=embeds.device)
    is_feature[inputs.feature_slots] = True
    return placed, {
        "visual_pos_masks": is_feature.view(embeds.shape[:2]),
        "deepstack_visual_embeds": [layer[inputs.feature_index] for layer in features.deepstack],
    }
