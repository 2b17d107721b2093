"""Which closed questions get choices: those whose answer has exactly one opposite, in English and Chinese.

The choices of a question depend on the pair alone, so they do not tell which of the two is right. Other closed answers
("left", 左侧) stay text: what else was offered stands only in the question.
"""

from __future__ import annotations

from medvista_ray.data.rows import TaskRow

# (what is offered, and what data sets write for the one and for the other); the Chinese ones are those of SLAKE
_PAIRS = (
    (("yes", "no"), ("yes",), ("no",)),
    (("是", "不是"), ("是", "是的", "对"), ("不是", "否", "不", "不对")),
    (("有", "没有"), ("有", "有的"), ("没有", "无", "没")),
    (("可以", "不可以"), ("可以", "能"), ("不可以", "不能")),
    (("包含", "不包含"), ("包含", "包括"), ("不包含", "不包括")),
    (("存在", "不存在"), ("存在",), ("不存在",)),
    (("正常", "不正常"), ("正常",), ("不正常",)),
    (("健康", "不健康"), ("健康",), ("不健康",)),
)
_CHOICES = {
    text: (offered, offered[place]) for offered, *sides in _PAIRS for place, texts in enumerate(sides) for text in texts
}


def make_row(task_id: str, *, family: str, question: str, answer: str, is_closed: bool) -> TaskRow:
    """Make the row of a question, with choices where its answer has one opposite."""
    found = _CHOICES.get(answer.strip().rstrip(".。").casefold()) if is_closed else None
    choices, answer = (list(found[0]), found[1]) if found else ([], answer.strip())
    return TaskRow(
        task_id=task_id,
        split="train",
        family=f"{family}_{'closed' if is_closed else 'open'}",
        question=" ".join(question.split()),
        choices=list(choices),
        answer=answer,
    )
