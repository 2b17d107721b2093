"""The text that the tiny tokenizer is trained on, and the long pieces of calls that it keeps as one token.

Keeping the fixed pieces of a JSON call whole makes a call about ten tokens shorter: shorter episodes, fewer malformed
calls. They are ordinary added tokens; a text of a user or a tool can never become one (see `rendering`).
"""

from __future__ import annotations

from medvista_ray.coldstart.expert import THOUGHTS
from medvista_ray.data.families import measure, structure, window, zoom
from medvista_ray.data.letters import LETTERS

PLAIN_TOKENS = (
    '{"name":"zoom","arguments":{"bbox":[',
    "]}}",
    '{"name":"window_level","arguments":{"preset":"',
    '"}}',
    '{"name":"measure","arguments":{"points":[[',
    "],[",
    ']],"unit":"pixels"}}',
    '{"name":"flip_rotate","arguments":{"operation":"',
)
TOOL_NAMES = ("zoom", "window_level", "measure", "flip_rotate")
WHERE_QUESTION = "Where is the ring?"
REPEAT = "Repeat: "
NONE_ANSWER = "none"


def make_corpus() -> tuple[str, ...]:
    """Return the sentences of prompts, thoughts, calls and answers, each as often as it should weigh."""
    names = ", ".join(TOOL_NAMES)
    sentences = [
        f"Tools: {names}.",
        "user\n",
        "assistant\n",
        "system\n",
        *THOUGHTS,
        *LETTERS,
        WHERE_QUESTION,
        REPEAT,
        NONE_ANSWER,
        zoom.QUESTION,
        *(window.QUESTION.format(kind=kind) for kind in window.KINDS),
        *(question for question, _ in structure.QUESTIONS.values()),
        *(answer for _, answers in structure.QUESTIONS.values() for answer in answers),
        measure.QUESTION.format(x0=10, y0=20, x1=30, y1=40),
        "12.3 mm",
        "soft_tissue lung bone metal brain abdomen",
        "0 333 667 1000",
    ]
    return tuple(sentence for sentence in sentences for _ in range(4))
