"""Staleness 0 on Ray: the tasks of a run are trained in order of admission, each with the weights of its moment."""

from pathlib import Path

import pytest
from small_runs import make_small_config
from test_cluster_deaths import started

pytest.importorskip("ray")
pytestmark = pytest.mark.usefixtures("ray_here")


async def test_staleness_0_trains_the_tasks_in_order_of_admission(small_policy: Path, tmp_path: Path) -> None:
    config = make_small_config(small_policy, num_tasks=8, buffer={"max_staleness": 0})
    async with started(config, tmp_path) as run:
        outcome = await run.driver.run()
        await run.check_trained_once(outcome)
    trained = [name for version in sorted(run.notes.trained) for name in run.notes.trained[version]]
    assert trained == [f"0/{index}/0" for index in range(8)]
    assert outcome.summary["staleness"] == {"mean": 0.0, "max": 0}
