"""Answers to closed questions: which choice a text names, if it names one and nothing else.

In order: its id as it stands ("A"), its text as it stands ("benign"), then the same after folding ("(a)", "Benign."),
id and text together ("A. benign"). The id goes first, so that a letter which is also the text of another choice means
the choice of that id. A text that two choices share names neither.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from medvista_ray.rewards.text import fold_text
from medvista_ray.types.messages import Choice

# The choices of a closed question that lists none, with what else says the same.
YES_NO = (Choice(choice_id="yes", text="是"), Choice(choice_id="no", text="否"))


def find_choice(answer: str, choices: Sequence[Choice]) -> str | None:
    """Return the id of the choice that an answer names, else None; without choices it is yes or no."""
    choices = choices or YES_NO
    given, folded = normalize_choice(answer), fold_text(answer)
    if not given:
        return None
    rules: tuple[Callable[[Choice], bool], ...] = (
        lambda choice: normalize_choice(choice.choice_id) == given,
        lambda choice: normalize_choice(choice.text) == given,
        lambda choice: bool(folded) and fold_text(choice.choice_id) == folded,
        lambda choice: bool(folded) and fold_text(choice.text) == folded,
        lambda choice: bool(folded) and fold_text(f"{choice.choice_id} {choice.text}") == folded,
    )
    for rule in rules:
        if named := [choice.choice_id for choice in choices if rule(choice)]:
            return named[0] if len(named) == 1 else None
    return None


def normalize_choice(text: str) -> str:
    """Return a choice as it is compared at first."""
    return text.strip().casefold()
