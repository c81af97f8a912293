"""All identities of one command: what is searched is searched first, and each is then adapted, in as many trials at once as there is room for."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fiag_dist.adaptation import search
from fiag_dist.adaptation.job import Job
from fiag_dist.adaptation.resources import Needs, Room, needs_of
from fiag_dist.adaptation.standings import Standings
from fiag_dist.adaptation.trial import adapt_identity, final_score_db, train
from fiag_dist.adaptation.tuning import run_all
from fiag_dist.shards.manifest import read_manifest
from fiag_dist.stages import total_steps
from fiag_dist.storage import open_storage
from fiag_dist.training.feed import num_held_out

HALVING = 2
"""Of the samples of one identity that reach a rung, one in so many goes on: of 2, one."""
FIRST_RUNG = 0.25
"""Share of the longest sample's steps after which samples are first compared."""


def adapt_all(jobs: Sequence[Job], out: str, standings: Standings, say: Callable[[str], None]) -> Mapping[str, str]:
    """Adapts all identities on the Ray that this process is connected to. Returns why those failed that did, by name."""
    room = Room.of_ray()
    searched = [job for job in jobs if job.search.settings and not search.is_chosen(job)]
    unjudged = _unjudged(searched, standings)
    jobs, searched = ([job for job in some if job.name not in unjudged] for some in (jobs, searched))
    if not jobs:
        return unjudged
    num_trials = len(jobs) * (jobs[0].search.samples if searched else 1)
    needs = needs_of(jobs, num_trials, room, out, say)
    say(f"each identity gets {needs}; {needs.at_once(room)} at a time")
    failed = unjudged | (_search(searched, needs, standings) if searched else {})
    rest = {job.name: job for job in jobs if job.name not in failed}
    return failed | run_all(rest, adapt_identity, needs, standings)


def _search(jobs: Sequence[Job], needs: Needs, standings: Standings) -> dict[str, str]:
    """Trains all samples and keeps which is best. Returns the identities of which no sample came to its end, with the reason of one."""
    samples = {f"{job.name}/{k}": sample for job in jobs for k, sample in enumerate(search.samples(job))}
    standings.add(list(samples))
    most = max(total_steps(sample.config.train) for sample in samples.values())
    lost = run_all(samples, train, needs, standings, lambda: _within_identity(most))
    failed = {}
    for job in jobs:
        scores = {
            k: score for k, sample in enumerate(search.samples(job)) if (score := final_score_db(sample)) is not None
        }
        if scores:
            search.write_choice(job, scores)
        else:
            whys = [why for name, why in lost.items() if name.rpartition("/")[0] == job.name]
            failed[job.name] = whys[0] if whys else "no sample came to its end"
            standings.failed(job.name, failed[job.name], again=False)
    standings.drop(list(samples))
    return failed


def _unjudged(jobs: Sequence[Job], standings: Standings) -> dict[str, str]:
    """The identities with too few training frames for any to be held out, and why that is so: nothing could tell which of their samples is best."""
    manifests = {url: read_manifest(open_storage(url), check=False) for url in {job.data for job in jobs}}
    failed = {}
    for job in jobs:
        frames = manifests[job.data].entry(job.name).split.train
        if not num_held_out(frames, job.config.plateau.frames):
            failed[job.name] = (
                f"{frames} training frames: a search holds back a tenth of them to judge samples by, and needs at least 10; "
                "give a longer clip, or adapt it without --search"
            )
            standings.failed(job.name, failed[job.name], again=False)
    return failed


def _within_identity(most_steps: int) -> Any:
    """Tune's scheduler for samples: asynchronous successive halving (ASHA) among those of the same identity, and never between people."""
    from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler

    class WithinIdentity(FIFOScheduler):
        def __init__(self) -> None:
            super().__init__()
            self._of: dict[str, AsyncHyperBandScheduler] = {}

        def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
            self._scheduler(trial).on_trial_add(tune_controller, trial)

        def on_trial_result(self, tune_controller: Any, trial: Any, result: dict) -> str:
            if result.get("psnr_db") is None:
                return self.CONTINUE
            return self._scheduler(trial).on_trial_result(tune_controller, trial, result)

        def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict) -> None:
            if (result or {}).get("psnr_db") is not None:
                self._scheduler(trial).on_trial_complete(tune_controller, trial, result)

        def _scheduler(self, trial: Any) -> AsyncHyperBandScheduler:
            identity = trial.config["trial"].rpartition("/")[0]
            if identity not in self._of:
                self._of[identity] = AsyncHyperBandScheduler(
                    time_attr="step",
                    metric="psnr_db",
                    mode="max",
                    max_t=most_steps,
                    grace_period=max(1, round(FIRST_RUNG * most_steps)),
                    reduction_factor=HALVING,
                    stop_last_trials=False,
                )
            return self._of[identity]

    return WithinIdentity()
