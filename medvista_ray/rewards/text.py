"""Text as graders compare it, and the F1 of its words. Knows no task.

Two texts are equal after NFKC, casefold, punctuation read as blanks, runs of blanks taken as one, none between Han
characters, and articles left out. What carries meaning stays: a decimal point, a sign before a number, a minus at the
end of a word ("HER2-"), `%`, symbols. An exponent is written `^n`: "10²" is not "102".
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable

_HAN = "\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003ffff"
_NO_WORD = re.compile(r"[^\w\s]|_")
_BLANK_IN_HAN = re.compile(f"(?<=[{_HAN}]) (?=[{_HAN}])")
_TOKEN = re.compile(f"[{_HAN}]|[^{_HAN}\\s]+")
_MINUSES = str.maketrans({"\u2212": "-", "\u2010": "-"})  # the sign of mathematics, the hyphen of typesetting
_SUPERSCRIPTS = "\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079"
_EXPONENT = re.compile(rf"(?<=\d)(?=[\u207a\u207b]?[{_SUPERSCRIPTS}])")  # behind a letter it stays: "cm²" is "cm2"
_ENDS_WORD = re.compile(r"[\s.,;:!?/)\]}\u3001\u3002]|$")


def fold_text(text: str) -> str:
    """Return text without differences of case, width, punctuation and blanks; folding twice changes nothing."""
    # Zero-width and direction marks are not seen, so they make no difference.
    text = "".join(char for char in text if unicodedata.category(char) != "Cf")
    text = _EXPONENT.sub("^", text)
    while (folded := unicodedata.normalize("NFKC", text.casefold()).translate(_MINUSES)) != text:
        text = folded
    return _BLANK_IN_HAN.sub("", " ".join(_NO_WORD.sub(_replace_punctuation, text).split()))


def normalize_text(text: str) -> str:
    """Return folded text without articles: `the` anywhere, `a` and `an` before a first word of two letters or more.

    Our choice where SQuAD drops them everywhere: "hepatitis A" is not "hepatitis", and "A" is an answer.
    """
    words = fold_text(text).split()
    words = [word for word in words if word != "the"] or words
    while len(words) > 1 and words[0] in ("a", "an") and len(words[1]) > 1:
        del words[0]
    return _BLANK_IN_HAN.sub("", " ".join(words))


def is_same_text(answer: str, wanted: Iterable[str]) -> bool:
    """Return whether an answer is one of the wanted texts; a text of punctuation alone has to be equal as it stands."""
    folded = normalize_text(answer)
    if not folded:
        return bool(answer.strip()) and answer.strip() in {text.strip() for text in wanted}
    return folded in {normalize_text(text) for text in wanted}


def token_f1(answer: str, reference: str) -> float:
    """Return the F1 of the words of two texts, as SQuAD defines it (arXiv 1606.05250, 1806.03822), from 0.0 to 1.0.

    For reports: no rubric and no evaluation uses it, since a text that is right in part is wrong. Words are those of
    `normalize_text`, every Han character one of them. Without a word in one of the two it is 1.0 if the other has none
    either, else 0.0.
    """
    given, wanted = _TOKEN.findall(normalize_text(answer)), _TOKEN.findall(normalize_text(reference))
    if not given or not wanted:
        return float(given == wanted)
    num_common = (Counter(given) & Counter(wanted)).total()
    return 2 * num_common / (len(given) + len(wanted))


def _replace_punctuation(match: re.Match[str]) -> str:
    char, text = match[0], match.string
    if char == "%" or not unicodedata.category(char).startswith("P"):
        return char
    before, after = text[match.start() - 1 : match.start()], text[match.end() : match.end() + 1]
    if char == "-" and before.isalnum() and _ENDS_WORD.match(text, match.end()):
        return char
    if after.isdecimal():
        if char == "." and (before.isdecimal() or not before.isalnum()):
            return char
        if char == "-" and not before.isalnum():
            return char
    return " "
