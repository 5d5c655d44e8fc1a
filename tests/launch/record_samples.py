"""Record the samples anew: `python -m tests.launch.record_samples [NAME...]`, about five minutes.

Brings up clusters of its own. Each sample is one story; what becomes of its jobs stands in test_queue.py.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from tests.cluster.lab import Cluster
from tests.launch.recordings import Recorder

Story = Callable[[Cluster, Recorder], None]
QUICK = "#!/bin/sh\nsleep 1\n"
LONG = "#!/bin/sh\nsleep 60\n"
EXITS = """#!/bin/sh
sleep 1
case $SLURM_ARRAY_TASK_ID in
0) exit 0 ;;
1) exit 3 ;;
2) kill -9 $$ ;;
3) exec srun sh -c 'kill -9 $$' ;;
4) exec srun python3 -c 'import time; x = bytearray(900 << 20); time.sleep(20)' ;;
esac
"""


def submit(lab: Cluster, recorder: Recorder, *options: str, tasks: str = "", script: str = LONG) -> str:
    name = f"ego-{len(recorder.recording.jobs)}"
    options = (f"--job-name={name}", *options, *([f"--array={tasks}"] if tasks else []))
    job_id = lab.submit(*options, script=script)
    first, _, last = tasks.partition("%")[0].partition("-")
    recorder.add(job_id, name, range(int(first), int(last) + 1) if tasks else None)
    return job_id


def exits(lab: Cluster, recorder: Recorder) -> None:
    """Tasks of an array end: well, exit code 3, killed batch script, killed step, above its memory."""
    submit(lab, recorder, "--mem=200M", tasks="0-4", script=EXITS)
    time.sleep(14)


def cancelled(lab: Cluster, recorder: Recorder) -> None:
    """Of an array with one task at a time: task 0 is cancelled while it runs, task 2 while it waits, then the rest."""
    job_id = submit(lab, recorder, tasks="0-3%1")
    time.sleep(2.5)
    lab.run("scancel", f"{job_id}_2")
    time.sleep(2)
    lab.run("scancel", f"{job_id}_0")
    time.sleep(14)
    lab.run("scancel", job_id)
    time.sleep(14)


def node_crash(lab: Cluster, recorder: Recorder) -> None:
    """A node crashes: one job may be started again, another may not, a third runs elsewhere."""
    submit(lab, recorder, "--nodelist=n2", "--requeue", script="#!/bin/sh\nsleep 8\n")
    submit(lab, recorder, "--nodelist=n2", "--no-requeue")
    submit(lab, recorder, "--nodelist=n1", script="#!/bin/sh\nsleep 8\n")
    time.sleep(3)
    lab.crash_node("n2")
    time.sleep(6)
    lab.restore_node("n2")
    time.sleep(25)


def preempted(lab: Cluster, recorder: Recorder) -> None:
    """Jobs of a partition that is preempted by requeueing, and of one that is preempted by cancelling."""
    submit(lab, recorder, "--nodes=1", "--gpus-per-node=4", script="#!/bin/sh\nsleep 16\n")
    submit(lab, recorder, "--nodes=1", "--gpus-per-node=4", "--partition=scav")
    time.sleep(3)
    lab.preempt(seconds=3)
    time.sleep(40)


def requeued(lab: Cluster, recorder: Recorder) -> None:
    """Requeued by hand; requeued and held, then released and cancelled while it waits."""
    first = submit(lab, recorder, script="#!/bin/sh\nsleep 6\n")
    held = submit(lab, recorder)
    time.sleep(2.5)
    lab.run("scontrol", "requeue", first)
    lab.run("scontrol", "requeuehold", held)
    time.sleep(18)
    lab.run("scancel", held)
    time.sleep(14)


def time_limit(lab: Cluster, recorder: Recorder) -> None:
    """One job reaches its time limit, one its deadline."""
    job_id = submit(lab, recorder)
    lab.submit("--nodelist=n2", "--gpus-per-node=4", script="#!/bin/sh\nsleep 300\n")
    submit(lab, recorder, "--nodelist=n2", "--gpus-per-node=4", "--deadline=now+65", "--time=1", script=QUICK)
    time.sleep(3)
    lab.expire(job_id, 3)
    time.sleep(100)


def controller_down(lab: Cluster, recorder: Recorder) -> None:
    """The controller is killed, and comes back; a job ends meanwhile, another goes on."""
    submit(lab, recorder, script="#!/bin/sh\nsleep 8\n")
    submit(lab, recorder, script="#!/bin/sh\nsleep 30\n")
    time.sleep(4)
    lab.kill_controller()
    time.sleep(12)
    lab.restart_controller()
    time.sleep(28)


def database_down(lab: Cluster, recorder: Recorder) -> None:
    """Accounting is away while a job is cancelled, and comes back."""
    job_id = submit(lab, recorder)
    time.sleep(2.5)
    lab.stop_database()
    lab.run("scancel", job_id)
    time.sleep(8)
    lab.start_database()
    time.sleep(14)


def never(lab: Cluster, recorder: Recorder) -> None:
    """Jobs that wait, for reasons of all kinds; the last one is suspended."""
    submit(lab, recorder, "--hold")
    submit(lab, recorder, "--begin=now+1hour")
    failed = submit(lab, recorder, script="#!/bin/sh\nexit 1\n")
    submit(lab, recorder, f"--dependency=afterok:{failed}")
    lab.run("scontrol", "update", "partitionname=scav", "maxnodes=1")
    submit(lab, recorder, "--partition=scav", "--nodes=2")
    held = submit(lab, recorder, "--begin=now+1hour")
    lab.run("scontrol", "hold", held)
    submit(lab, recorder, "--nodes=2", "--gpus-per-node=4")
    submit(lab, recorder, "--nodes=2", "--gpus-per-node=4")
    paused = submit(lab, recorder, "--partition=high")
    time.sleep(4)
    lab.run("scontrol", "suspend", paused)
    time.sleep(8)


def no_accounting(lab: Cluster, recorder: Recorder) -> None:
    """No accounting: ends well, exit code 3, cancelled while it waits and while it runs, node crash without requeue."""
    submit(lab, recorder, script=QUICK)
    submit(lab, recorder, script="#!/bin/sh\nsleep 1\nexit 3\n")
    array = submit(lab, recorder, tasks="0-2%1")
    submit(lab, recorder, "--nodelist=n2", "--no-requeue")
    time.sleep(3)
    lab.run("scancel", f"{array}_1")
    lab.run("scancel", f"{array}_0")
    lab.crash_node("n2")
    time.sleep(14)


def forgotten(lab: Cluster, recorder: Recorder) -> None:
    """No accounting, and a controller that comes back without its memory: the job is unknown to it."""
    job_id = submit(lab, recorder)
    time.sleep(3)
    lab.kill_controller()
    time.sleep(1)
    lab.crash_node("n1", noticed=False)
    (lab.base / "state" / "job_state").unlink()
    (lab.base / "state" / "job_state.old").unlink(missing_ok=True)
    lab.restart_controller()
    time.sleep(14)
    del job_id


SHARED: tuple[Story, ...] = (
    exits, cancelled, node_crash, preempted, requeued, controller_down, database_down, never, time_limit,
)  # fmt: skip
BARE: tuple[Story, ...] = (no_accounting, forgotten)


def record(lab: Cluster, story: Story) -> None:
    print(story.__name__, flush=True)
    with lab.active(), Recorder() as recorder:
        story(lab, recorder)
    recorder.recording.save(story.__name__, (story.__doc__ or "").strip())


def main(names: list[str]) -> None:
    for stories, database in ((SHARED, True), (BARE, False)):
        wanted = [story for story in stories if not names or story.__name__ in names]
        for story in wanted:
            lab = Cluster.up(database=database)
            try:
                record(lab, story)
            finally:
                lab.down()


if __name__ == "__main__":
    main(sys.argv[1:])
