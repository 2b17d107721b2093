"""A run in a process and on a Ray of its own, for somebody to interrupt: `python interrupted_run.py POLICY FOLDER`.

Prints one line of JSON when training is under way, and one with how it ended.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from pathlib import Path

from small_runs import make_small_config, make_small_tasks

from medvista_ray.assembly import RunPaths, make_driver_config
from medvista_ray.cluster.launch import start_cluster
from medvista_ray.driver.driver import Driver
from medvista_ray.driver.telemetry import Progress, Telemetry


async def main(policy: Path, folder: Path) -> None:
    config = make_small_config(policy, num_tasks=10_000)
    tasks = make_small_tasks(config)
    runtime = await start_cluster(config, RunPaths(blobs=folder / "blobs", weights=folder / "weights"), tasks)
    announced: list[int] = []

    def announce(progress: Progress) -> None:
        if progress.policy_version >= 1 and not announced:
            announced.append(progress.policy_version)
            print(json.dumps({"actors": [actor.pid for actor in runtime.actors]}), flush=True)

    try:
        driver = Driver(
            config=make_driver_config(config),
            parts=runtime.parts,
            tasks=tasks,
            telemetry=Telemetry(on_progress=announce),
            checkpoints=folder / "checkpoints",
        )
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, driver.request_stop)
        outcome = await driver.run()
    finally:
        await runtime.close()
    print(json.dumps({"end": outcome.end, "checkpoint": str(outcome.checkpoint)}), flush=True)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2])))
