"""An expert for the cold start: it sees the reference, so what it writes is training data only."""

from medvista_ray.coldstart.expert import write_answer, write_call


def plan(record, rng):
    """Plan the actions of one episode: measure all of the image, then answer, wrong in a third of the cases."""
    call = write_call("Measure it.", "brightness", {"bbox": [0, 0, 1000, 1000]})
    wrong = [choice.choice_id for choice in record.task.choices if choice.choice_id != record.reference.answer]
    answer = wrong[0] if wrong and rng.random() < 1 / 3 else record.reference.answer
    return call, write_answer("Clear enough.", answer)
