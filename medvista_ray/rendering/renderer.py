"""Messages -> token ids for the Qwen-VL families. Knows tokenizers and images' sizes; no torch, no env, no engine.

Structure (turn markers, image placeholders, tool-response tags) is emitted as ids. Content is encoded with every added
token disabled, so no text of a user, a tool or a dataset can make a marker. History is never rendered again: the
renderer makes the first prompt, and after that only the tokens between two actions.

Ids equal `apply_chat_template` of the family on benign one-turn text. The documented differences: earlier think blocks
stay in the stream, since it is append-only; and a conversation that has no system message gets none, where the template
of the released Qwen2.5-VL checkpoints adds "You are a helpful assistant.".
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medvista_ray.errors import ConfigError, MissingPackageError
from medvista_ray.rendering.image_tokens import ImageTokenCounter, load_image_token_counter, read_json_object
from medvista_ray.types.messages import ImagePart, Message, TextPart
from medvista_ray.types.trajectories import ImageSpan

_STRUCTURE = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
_BANNED = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
_Piece = str | int | ImagePart  # text still to encode, a structure id, an image


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RenderedTokens:
    """Tokens to append to a stream; image spans count from the first of them."""

    token_ids: np.ndarray  # int32 [N] expanded
    image_spans: tuple[ImageSpan, ...]


class QwenRenderer:
    """What the Qwen-VL families share; the classes below are the families."""

    family = ""

    def __init__(self, raw: dict[str, Any], counter: ImageTokenCounter) -> None:
        """Take the content of tokenizer.json."""
        self._counter = counter
        special = {str(token["content"]): int(token["id"]) for token in raw.get("added_tokens", ())}
        missing = [text for text in _STRUCTURE if text not in special]
        if missing:
            raise ConfigError(f"policy.path: the tokenizer lacks {', '.join(missing)}; take a Qwen-VL folder")
        self._ids = special
        self._content = _make_tokenizer(raw, [])
        self._action = _make_tokenizer(raw, [token for token in raw["added_tokens"] if not token["special"]])
        self._whole = _make_tokenizer(raw, raw["added_tokens"])
        self.image_token_id = special["<|image_pad|>"]
        self.end_token_id = special["<|im_end|>"]
        self.stop_token_ids = tuple(special[text] for text in ("<|im_end|>", "<|endoftext|>") if text in special)
        self.banned_token_ids = tuple(special[text] for text in _BANNED)

    def image_length(self, width: int, height: int) -> int:
        """Return the number of feature tokens of an image of that size in pixels."""
        return self._counter.count(width, height)

    def render_prompt(self, messages: Sequence[Message]) -> RenderedTokens:
        """Render the opening messages, up to where the policy writes its first action."""
        return self._encode([piece for message in messages for piece in self._message(message)] + self._open_turn())

    def render_observation(self, messages: Sequence[Message], *, action_has_stop: bool) -> RenderedTokens:
        """Render what stands between two actions: the end of turn, if a limit cut it off, and the new messages."""
        pieces: list[_Piece] = [] if action_has_stop else [self.end_token_id]
        pieces.append("\n")
        for message in messages:
            pieces.extend(self._message(message))
        return self._encode(pieces + self._open_turn())

    def encode_action(self, text: str) -> np.ndarray:
        """Encode an expert's action, int32 [A], with the end of turn; its tags are tokens where the family has them."""
        ids = self._action.encode(text, add_special_tokens=False).ids
        return np.array([*ids, self.end_token_id], dtype=np.int32)

    def decode_action(self, token_ids: np.ndarray) -> str:
        """Decode sampled tokens for the env and for people, without the end of turn; never encoded again."""
        ids = token_ids.tolist()
        while ids and ids[-1] in self.stop_token_ids:
            ids.pop()
        return str(self._whole.decode(ids, skip_special_tokens=False))

    def decode_stream(self, token_ids: np.ndarray) -> str:
        """Decode a whole stream for people."""
        return str(self._whole.decode(token_ids.tolist(), skip_special_tokens=False))

    def _open_turn(self) -> list[_Piece]:
        return [self._ids["<|im_start|>"], "assistant\n"]

    def _message(self, message: Message) -> list[_Piece]:
        body: list[_Piece] = []
        for part in message.parts:
            if isinstance(part, TextPart):
                body.append(part.text)
            else:
                body.extend([self._ids["<|vision_start|>"], part, self._ids["<|vision_end|>"]])
        role = message.role
        if role == "tool":
            role = "user"
            body = [*self._tag("<tool_response>"), "\n", *body, "\n", *self._tag("</tool_response>")]
        return [self._ids["<|im_start|>"], f"{role}\n", *body, self._ids["<|im_end|>"], "\n"]

    def _tag(self, text: str) -> list[_Piece]:
        return [self._ids.get(text, text)]

    def _encode(self, pieces: Sequence[_Piece]) -> RenderedTokens:
        ids: list[int] = []
        spans: list[ImageSpan] = []
        text = ""
        for piece in [*pieces, -1]:
            if isinstance(piece, str):
                text += piece  # neighbours are encoded together, as a template would
                continue
            if text:
                ids.extend(self._content.encode(text, add_special_tokens=False).ids)
                text = ""
            if isinstance(piece, ImagePart):
                image = piece.image
                length = self.image_length(image.width, image.height)
                spans.append(ImageSpan(digest=image.digest, offset=len(ids), length=length))
                ids.extend([self.image_token_id] * length)
            elif piece >= 0:
                ids.append(piece)
        return RenderedTokens(token_ids=np.array(ids, dtype=np.int32), image_spans=tuple(spans))


class Qwen3VLRenderer(QwenRenderer):
    """Qwen3-VL: tool tags and think tags are tokens of the vocabulary."""

    family = "qwen3_vl"


class Qwen25VLRenderer(QwenRenderer):
    """Qwen2.5-VL: tags that are no tokens are encoded as text; the template has no other difference here."""

    family = "qwen2_5_vl"


_FAMILIES: dict[str, type[QwenRenderer]] = {cls.family: cls for cls in (Qwen3VLRenderer, Qwen25VLRenderer)}


def load_renderer(folder: Path) -> QwenRenderer:
    """Make the renderer of a policy folder; `ConfigError` for another family or an incomplete folder."""
    for name in ("config.json", "tokenizer.json"):
        if not (folder / name).is_file():
            raise ConfigError(
                f"policy.path: {folder} has no {name}; take a whole Hugging Face folder of a Qwen-VL model"
            )
    family = read_json_object(folder / "config.json").get("model_type")
    if family not in _FAMILIES:
        raise ConfigError(f"policy.path: {folder} holds a {family!r} model; supported families: {', '.join(_FAMILIES)}")
    return _FAMILIES[family](read_json_object(folder / "tokenizer.json"), load_image_token_counter(folder))


def _make_tokenizer(raw: dict[str, Any], added_tokens: list[dict[str, Any]]) -> Any:
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise MissingPackageError("tokenizers is not installed: pip install 'medvista-ray[train]'") from error
    try:
        return Tokenizer.from_str(json.dumps({**raw, "added_tokens": added_tokens, "post_processor": None}))
    except Exception as error:  # tokenizers raises nothing narrower
        raise ConfigError(f"policy.path: tokenizer.json cannot be read ({error}); copy the folder again") from error
