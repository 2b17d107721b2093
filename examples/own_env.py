"""An environment from scratch: which half of an image is brighter? Train on it with env.target=own_env:BrighterHalf.

A Gymnasium env with two things more: `observe()` gives the new messages as records, `blobs` has the bytes of every
image in them. The policy's text is the action. See docs/own_env.md.
"""

import gymnasium
import numpy as np
from gymnasium.error import ResetNeeded

from medvista_ray.envs.checker import check_episodes
from medvista_ray.envs.prompts import messages_to_json
from medvista_ray.envs.protocol_text import Answer, Malformed, parse_action
from medvista_ray.envs.spaces import ImageTuple, UnicodeText
from medvista_ray.images.codec import decode, encode_png, make_ref
from medvista_ray.images.store import MemoryBlobCache
from medvista_ray.tools.views import View, default_window, draw_view
from medvista_ray.types.messages import PNG_MIME, ImagePart, Message, TextPart

MAX_TURNS, SIDE_PX = 3, 84
QUESTION = "Which half is brighter, left or right?"


class BrighterHalf(gymnasium.Env):
    """One question about one image, no tools; three tries to write an answer."""

    def __init__(self, *, config=None, tools=None, renderer=None):
        self.observation_space = gymnasium.spaces.Dict({"messages": UnicodeText(), "images": ImageTuple()})
        self.action_space = UnicodeText()
        self.blobs = renderer.blobs if renderer else MemoryBlobCache()
        self._messages = None

    def observe(self):
        """Return the messages that are new since the last action."""
        return self._messages

    def reset(self, *, seed=None, options=None):
        """Start an episode about the image of a task, or about noise."""
        super().reset(seed=seed)
        pixels = self.np_random.integers(0, 256, (SIDE_PX, SIDE_PX, 3), dtype=np.uint8)
        if options and "task" in options:  # in training
            source = options["task"].images[0]
            values = decode(self.blobs.get(source.digest), source.mime)  # of more than 8 bits in CT: hence a window
            view = View(source_index=0, window=default_window(source))
            pixels, _ = draw_view(values, view, view_size_px=SIDE_PX)
        left, right = np.array_split(pixels, 2, axis=1)
        self._answer = "left" if left.mean() > right.mean() else "right"
        self._turns = 0
        png = encode_png(pixels)
        self.blobs.put(png)
        image = make_ref(png, mime=PNG_MIME, width=pixels.shape[1], height=pixels.shape[0])
        self._messages = (Message(role="user", parts=(ImagePart(image=image), TextPart(text=QUESTION))),)
        return self._observation(pixels), {}

    def step(self, action):
        """Take an action; anything but an answer is told so, and the last try ends the episode."""
        if self._messages is None:
            raise ResetNeeded("call reset()")
        self._turns += 1
        parsed = parse_action(action)
        ended = isinstance(parsed, Answer | Malformed)
        if not ended and self._turns < MAX_TURNS:
            self._messages = (Message(role="tool", parts=(TextPart(text="There are no tools. Answer."),)),)
            return self._observation(), 0.0, False, False, {}
        reward = float(isinstance(parsed, Answer) and parsed.text.strip() == self._answer)
        stop = "turn_limit" if not ended else "answered" if isinstance(parsed, Answer) else "malformed"
        self._messages = ()
        observation = self._observation()
        self._messages = None
        return observation, reward, ended, not ended, {"stop_reason": stop, "reward_breakdown": {"correct": reward}}

    def _observation(self, *images):
        return {"messages": messages_to_json(self._messages, first_image_index=0), "images": images}


if __name__ == "__main__":
    print(check_episodes(BrighterHalf) or "no problems")
