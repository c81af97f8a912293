"""What one trial needs, by a look at one: memory, and as many threads as make it faster. Ray then fills machines and GPUs, and over-fills none."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from statistics import median

import torch

from fiag_dist.adaptation.job import Job, stored_json
from fiag_dist.adaptation.trial import build
from fiag_dist.cluster import living_nodes, result_of
from fiag_dist.config import AdaptConfig
from fiag_dist.configfile import to_dict
from fiag_dist.errors import ConfigError, FiagError
from fiag_dist.kernels.launch import use_threads
from fiag_dist.memory import peak_resident_mib
from fiag_dist.shards.manifest import read_manifest
from fiag_dist.stages import first_of_fusion
from fiag_dist.storage import open_storage

MARGIN = 1.4
"""Of memory over what training was seen to take: scoring and filming, which come after it, take somewhat more."""
STEPS = 6
WORTH = 1.25
"""Twice the threads must make a step at least so much faster to be worth their cores."""
CUDA_CONTEXT_MIB = 600
MOST_ON_A_GPU = 16
LOOKED_AT = 3
"""Jobs that a look is tried at, should the first ones fail."""
KEPT = "resources.json"
"""Beside the identity folders: what was measured, on which machines, for which settings."""


@dataclass(frozen=True)
class Seen:
    """What was measured of a job's training."""

    host_mib: float
    gpu_mib: float
    gpu_total_mib: float
    step_ms: Mapping[int, float]
    """Time of a step by number of threads."""


@dataclass(frozen=True)
class Needs:
    """What Ray sets aside for a trial."""

    threads: int
    memory_mib: int
    """0: nobody knows."""
    gpus: float

    def for_ray(self) -> dict[str, float]:
        """Resources by Ray's names."""
        return {"cpu": self.threads, "gpu": self.gpus, "memory": self.memory_mib * 2**20}

    def at_once(self, room: "Room") -> int:
        """How many trials fit."""
        limits = [room.cores / self.threads]
        limits += [room.memory_mib / self.memory_mib] if self.memory_mib else []
        limits += [room.gpus / self.gpus] if self.gpus else []
        return max(1, int(min(limits)))

    def __str__(self) -> str:
        memory = f", {self.memory_mib} MiB" if self.memory_mib else ""
        gpus = f", {self.gpus:.2g} of a GPU" if self.gpus else ""
        return f"{self.threads} core{'s' * (self.threads > 1)}{memory}{gpus}"


@dataclass(frozen=True)
class Room:
    """What the largest machine has, and what all have together."""

    cores: int
    most_cores: int
    memory_mib: float
    most_memory_mib: float
    gpus: float

    @classmethod
    def of_ray(cls) -> "Room":
        """The cluster that this process is connected to."""
        nodes = [node["Resources"] for node in living_nodes()]
        return cls(
            cores=int(sum(node.get("CPU", 0) for node in nodes)),
            most_cores=int(max(node.get("CPU", 0) for node in nodes)),
            memory_mib=sum(node.get("memory", 0) for node in nodes) / 2**20,
            most_memory_mib=max(node.get("memory", 0) for node in nodes) / 2**20,
            gpus=sum(node.get("GPU", 0) for node in nodes),
        )


def needs_of(jobs: Sequence[Job], num_trials: int, room: Room, out: str, say: Callable[[str], None] = print) -> Needs:
    """What a trial of these jobs takes: measured on the one with the most footage, on a machine of the cluster, and kept in `out` for the next time.

    num_trials: how many want to run; the fewer, the more threads each may have. Raises ConfigError when the settings ask for more than any machine has.
    """
    config = jobs[0].config
    _check(config, room)
    if config.cpus_per_trial and num_trials == 1:
        return Needs(config.cpus_per_trial, 0, _asked_gpus(config, room))
    most = max(1, min(room.most_cores, room.cores // num_trials))
    tried = [config.cpus_per_trial] if config.cpus_per_trial else [2**k for k in range(most.bit_length())]
    manifests = {url: read_manifest(open_storage(url), check=False) for url in {job.data for job in jobs}}
    by_footage = sorted(jobs, key=lambda job: -manifests[job.data].entry(job.name).num_frames)
    largest = manifests[by_footage[0].data]
    question = {
        "cores": room.most_cores,
        "gpus": room.gpus,
        "threads": tried,
        "config": to_dict(config),
        "start": jobs[0].start,
        "size": largest.size,
        "num_frames": largest.entry(by_footage[0].name).num_frames,
    }
    kept = stored_json(out, KEPT)
    if kept.get("question") == json.loads(json.dumps(question)):
        return decided(Seen(**kept["seen"] | {"step_ms": dict(kept["seen"]["step_ms"])}), config, room)
    say("measuring what one identity needs ...")
    seen = _measured(by_footage, tried, room)
    if seen is None:
        return Needs(tried[0], 0, _asked_gpus(config, room))
    plain = asdict(seen) | {"step_ms": list(seen.step_ms.items())}  # JSON has no numbers for keys
    open_storage(out).write(KEPT, json.dumps({"question": question, "seen": plain}, indent=1).encode())
    return decided(seen, config, room)


def decided(seen: Seen, config: AdaptConfig, room: Room) -> Needs:
    """What is set aside for a trial that was seen to take so much."""
    threads, *more = sorted(seen.step_ms)
    for num in more:
        if seen.step_ms[threads] / seen.step_ms[num] < WORTH:
            break
        threads = num
    gpus = config.gpus_per_trial
    if gpus is None:
        wanted_mib = MARGIN * seen.gpu_mib + CUDA_CONTEXT_MIB
        fitting = min(MOST_ON_A_GPU, max(1, int(seen.gpu_total_mib / wanted_mib)))
        gpus = 1 / fitting if seen.gpu_total_mib else 0.0
    return Needs(threads, round(min(MARGIN * seen.host_mib, room.most_memory_mib)), gpus)


def look_at(job: Job, threads: Sequence[int]) -> Seen:
    """Trains a few steps with images, at each number of threads, in this process."""
    training = build(job)
    motion = training.config.stages.landmark_steps, first_of_fusion(training.config)
    training.step = sum(motion) // 2
    step_ms = {}
    for num in threads:
        use_threads(num)
        times = []
        for _ in range(STEPS):
            lessons, began = training.feed.next(training.step), time.perf_counter()
            training.learn(lessons)
            times.append(1e3 * (time.perf_counter() - began))
        step_ms[num] = median(times[1:])
    training.feed.close()
    is_on_gpu = next(training.head.parameters()).is_cuda
    return Seen(
        host_mib=peak_resident_mib(),
        gpu_mib=torch.cuda.max_memory_reserved() / 2**20 + training.feed.yet_to_stay_mib() if is_on_gpu else 0.0,
        gpu_total_mib=torch.cuda.get_device_properties(0).total_memory / 2**20 if is_on_gpu else 0.0,
        step_ms=step_ms,
    )


def _measured(by_footage: Sequence[Job], threads: Sequence[int], room: Room) -> Seen | None:
    """A look at the first job, that with the most footage, that can be looked at; none when the first few all fail, as they will when they are adapted."""
    import ray
    from ray.exceptions import RayError

    gpus = min(1.0, _asked_gpus(by_footage[0].config, room))
    look = ray.remote(num_cpus=max(threads), num_gpus=1 if gpus else 0, max_calls=1, max_retries=1)(look_at)
    for job in by_footage[:LOOKED_AT]:
        with suppress(RayError, FiagError):
            return result_of(look.remote(job, threads))
    return None


def _check(config: AdaptConfig, room: Room) -> None:
    """Ray would wait for ever for what no machine has."""
    if not 0 <= config.cpus_per_trial <= room.most_cores:
        raise ConfigError(
            f"--cpus-per-trial {config.cpus_per_trial}: the largest machine has {room.most_cores} cores; give fewer, or 0 for a measurement"
        )
    if not 0 <= (config.gpus_per_trial or 0) <= room.gpus:
        raise ConfigError(
            f"--gpus-per-trial {config.gpus_per_trial}: there are {room.gpus:g} GPUs; give less, or leave it out for a measurement"
        )


def _asked_gpus(config: AdaptConfig, room: Room) -> float:
    """Of one trial, before anything was measured."""
    return min(1.0, room.gpus) if config.gpus_per_trial is None else config.gpus_per_trial
