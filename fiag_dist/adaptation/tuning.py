"""Jobs as trials of Ray Tune: as many at once as there is room for, each on its own, and those that die tried again from their last checkpoints."""

import logging
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from fiag_dist.adaptation.job import Job, Progress, Report
from fiag_dist.adaptation.resources import Needs
from fiag_dist.adaptation.standings import Standings
from fiag_dist.cluster import living_nodes
from fiag_dist.errors import FiagError
from fiag_dist.storage import UnreachableError

QUIET = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # each identity keeps its own record
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is met by the command
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a trial that is refused reports why, and no score
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
}
MEMORY_SIGNS = (
    "out of memory",
    "outofmemory",
    "memoryerror",
    "cannot allocate memory",
    "killed due to the node running low",
)
"""What errors say that come of too little memory: Ray's, Python's, torch's."""

LOOK_S = 5.0
"""How often it is looked whether any machine is left."""

Work = Callable[[Job, Report, int], Any]


@dataclass(frozen=True)
class Failure:
    """Why a trial did not come to its end."""

    reason: str
    out_of_memory: bool = False
    is_final: bool = False
    """Trying again can't mend it: the clip or the checkpoint is at fault."""


def run_all(
    jobs: Mapping[str, Job], work: Work, needs: Needs, standings: Standings, scheduler: Callable[[], Any] = lambda: None
) -> dict[str, str]:
    """Works off jobs by trial name. Returns why those failed that did, after as many tries as their settings allow.

    What dies is tried again when all others have had their turn; by itself if it ran out of memory, or if it is its last try. Each job goes on from its
    last checkpoint of itself, so nothing that Ray knows has to outlive it. scheduler: makes Tune's scheduler, for trials that may be stopped early.
    Raises DistributedError when Ray has no machine left.
    """
    left, failures, lost = dict(jobs), dict[str, Failure](), dict[str, str]()
    retries = max((job.config.retries for job in jobs.values()), default=0)
    for attempt in range(retries + 1):
        is_last = attempt == retries
        alone = {name for name in left if attempt and (is_last or failures[name].out_of_memory)}
        together = {name: job for name, job in left.items() if name not in alone}
        apart = {name: job for name, job in left.items() if name in alone}
        failures = _round(together, work, needs, standings, 0, scheduler) | _round(
            apart, work, needs, standings, 1, scheduler
        )
        for name, failure in failures.items():
            if is_last or failure.is_final:
                lost[name] = failure.reason
            standings.failed(name, failure.reason, again=name not in lost)
        left = {name: jobs[name] for name in failures if name not in lost}
        if not left:
            break
    return lost


def _round(
    jobs: Mapping[str, Job], work: Work, needs: Needs, standings: Standings, at_once: int, scheduler: Callable[[], Any]
) -> dict[str, Failure]:
    """One trial a job, `at_once` of them at the same time, 0: as many as fit. Returns those that failed."""
    if not jobs:
        return {}
    os.environ.update(QUIET)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # what failed is said by the standings, and why
    from ray import tune

    threads = needs.threads  # a number: workers are sent what the trial names, and need not load where it comes from

    def trial(space: dict[str, str]) -> None:
        def report(progress: Progress) -> None:
            tune.report(asdict(progress))

        try:
            work(jobs[space["trial"]], report, threads)
        except UnreachableError:  # a place that gives no answer now may give one later
            raise
        except FiagError as error:
            tune.report({"refused": str(error)})

    listener = _listener(standings)
    with tempfile.TemporaryDirectory(prefix="fiag-trials-") as folder:
        tuner = tune.Tuner(
            tune.with_resources(trial, needs.for_ray()),
            param_space={"trial": tune.grid_search(list(jobs))},
            tune_config=tune.TuneConfig(
                metric="psnr_db",
                mode="max",
                scheduler=scheduler(),
                max_concurrent_trials=at_once or None,
                reuse_actors=True,  # a process takes seconds to start
                trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=tune.RunConfig(name="trials", storage_path=folder, callbacks=[listener], verbose=0),
        )
        tuner.fit()
        return listener.failures()


def failure_of(error: Exception | None) -> Failure:
    """What an error means that ended a trial."""
    text = str(error or "it died without a word")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    out_of_memory = any(sign in text.lower() for sign in MEMORY_SIGNS)
    if "ActorDiedError" in text or "actor died" in text:
        reason = "its process ran out of memory and was ended" if out_of_memory else "its process was killed or crashed"
        return Failure(reason, out_of_memory)
    return Failure(lines[-1], out_of_memory)


def _listener(standings: Standings) -> Any:
    """Tune's callback that passes on how far trials are, and remembers those that failed."""
    from ray import tune

    class Listener(tune.Callback):
        def __init__(self) -> None:
            self.died: dict[str, Any] = {}
            self.refused: dict[str, str] = {}
            self.looked_s = time.monotonic()

        def on_step_begin(self, iteration: int, trials: list, **info: Any) -> None:
            if time.monotonic() - self.looked_s > LOOK_S:
                living_nodes()
                self.looked_s = time.monotonic()

        def on_trial_start(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
            standings.started(trial.config["trial"])

        def on_trial_result(self, iteration: int, trials: list, trial: Any, result: dict, **info: Any) -> None:
            name = trial.config["trial"]
            if "refused" in result:
                self.refused[name] = result["refused"]
            elif "state" in result:
                told = Progress(result["state"], result["step"], result["steps"], result["psnr_db"])
                standings.moved(name, told)

        def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
            if trial.config["trial"] not in self.refused:
                standings.ended(trial.config["trial"])

        def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
            self.died[trial.config["trial"]] = trial

        def failures(self) -> dict[str, Failure]:
            """To be asked while Tune's folder is there: it keeps the errors."""
            found = {name: Failure(reason, is_final=True) for name, reason in self.refused.items()}
            for name, trial in self.died.items():
                found[name] = failure_of(trial.get_pickled_error() or trial.get_error())
            return found

        def __reduce__(self) -> Any:  # Tune keeps a pickle of its settings; a terminal can't be part of it
            return (tune.Callback, ())

    return Listener()
