"""fiag-dist bench pack: frames a second from a clip to shards on disk, where the time goes, and what a second core adds."""

import json
import os
import statistics
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fiag_dist.bench.benchmark import Benchmark, at_least, say
from fiag_dist.config import PackConfig
from fiag_dist.errors import ConfigError, DataError
from fiag_dist.pack import pack
from fiag_dist.shards.packing import TIMINGS

WARM_UP_S = 2.4
"""Seconds of the clip that each worker packs first, uncounted: libraries are loaded then, and the file lies in memory."""


@dataclass(frozen=True, kw_only=True)
class Bench(Benchmark):
    """Packs a clip as `fiag-dist pack` does, in one worker of one thread, then as many copies at once as each number of workers says.

    A worker's time runs from opening the clip to its last sample. Processor time counts the work alone, so on a busy machine trust cpu_ms_per_frame, and
    no other figure. Example: fiag-dist bench pack --clip anchor_a.mp4 --workers 1 2
    """

    clip: Path
    """A video of one speaking person."""
    workers: tuple[int, ...] = ()
    """Clips at once, beside one alone; none: two, where there are two cores."""
    max_seconds: float = 20.0
    """Of the clip, from its start; 0 takes all."""
    size: int = 256
    """Side of the samples, pixels."""
    repeat: int = 1
    """Rounds whose median counts; in each, all numbers of workers have their turn."""

    def measure(self) -> dict[str, Any]:
        cores = len(os.sched_getaffinity(0))
        counts = sorted({1, *(self.workers or (min(2, cores),))})
        at_least(1, workers=counts[0])
        if self.threads:
            raise ConfigError(f"--threads {self.threads}: a worker has one thread; leave it out")
        if counts[-1] > cores:
            raise ConfigError(f"--workers {counts[-1]}: each needs a core, and there are {cores}; give at most {cores}")
        if not self.clip.is_file():
            raise DataError(f"--clip {self.clip}: no such file; give a video of one speaking person")
        with suppress(DataError):  # too little of a clip that begins without a face
            self._packed(counts[-1], WARM_UP_S)
        rounds = [{count: self._packed(count, self.max_seconds) for count in counts} for _ in range(self.repeat)]
        alone = [turn[1][0] for turn in rounds]
        speeds = {count: statistics.median(_frames_per_s(turn[count]) for turn in rounds) for count in counts}
        timings = [report[TIMINGS] for report in alone]
        return {
            "frames_per_s": speeds[1],
            "cpu_ms_per_frame": statistics.median(t["cpu_ms_per_frame_in_all"] for t in timings),
            "parts_cpu_ms_per_frame": {
                part: statistics.median(t["cpu_ms_per_frame"].get(part, 0.0) for t in timings)
                for part in timings[0]["cpu_ms_per_frame"]
            },
            "workers": {
                str(count): {"frames_per_s": speed, "ratio": speed / speeds[1]} for count, speed in speeds.items()
            },
            "worker_peak_mib": max(
                report[TIMINGS]["worker_peak_mib"] for turn in rounds for reports in turn.values() for report in reports
            ),
            "statistic": f"medians of {self.repeat} rounds; frames of all workers over the seconds of the slowest",
            "seconds_used": alone[0]["seconds_used"],
        }

    def _packed(self, count: int, seconds: float) -> list[dict[str, Any]]:
        """Reports of so many copies of the clip, packed at the same time."""
        say(f"{count} at once, {f'{seconds:g} s' if seconds else 'the whole clip'}")
        with tempfile.TemporaryDirectory(prefix="fiag-bench-") as folder:
            clips = [Path(folder) / f"copy{number}{self.clip.suffix}" for number in range(count)]
            for copy in clips:
                copy.symlink_to(self.clip.absolute())
            cfg = PackConfig(size=self.size, max_seconds=seconds, jobs=count)
            pack(clips, folder, cfg, report=say)
            return [json.loads((Path(folder) / copy.stem / "report.json").read_text()) for copy in clips]


def _frames_per_s(reports: list[dict[str, Any]]) -> float:
    """Of all workers together."""
    frames = sum(report["seconds_used"] for report in reports) * PackConfig().fps
    return frames / max(report[TIMINGS]["wall_s"] for report in reports)
