"""What is asked for one identity, and how its folder says that it is the answer."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from fiag_dist.config import AdaptConfig
from fiag_dist.configfile import to_dict
from fiag_dist.storage import MissingError, open_storage

DONE = "done.json"
"""Written last into an identity folder: a hash of the job that it is the answer to, and the consent that it names."""
RESOURCES = ("cpus_per_trial", "gpus_per_trial", "retries")
"""Settings that say how an answer is found, and not what it is."""


@dataclass(frozen=True)
class Search:
    """Which settings are tried for each identity, and how often."""

    settings: tuple[str, ...] = ()
    """Of SPACE in fiag_dist/adaptation/search.py; none: nothing is searched."""
    samples: int = 4


@dataclass(frozen=True)
class Job:
    """One identity to adapt. Paths are absolute, or s3:// prefixes."""

    name: str
    data: str
    """Folder or prefix of its shards."""
    start: str
    """The checkpoint, a step folder; empty: from scratch."""
    folder: str
    """Of the identity: what comes out."""
    config: AdaptConfig
    scratch: bool = False
    """Also train it from scratch, for comparison."""
    search: Search = field(default_factory=Search)
    footage: str = ""
    """SHA-256 of what its shards hold: other footage under the same name is another job."""
    learnt: str = ""
    """SHA-256 of the checkpoint's COMMIT.json: what was trained anew at the same step is another start."""
    consent: str = ""
    """What the shards say that the person agreed to, which the identity keeps."""

    @property
    def key(self) -> str:
        """Changes when the answer would, apart from the consent that it names."""
        searched = [list(self.search.settings), self.search.samples] if self.search.settings else []
        return _hash([self.training_key, self.scratch, searched])

    @property
    def training_key(self) -> str:
        """Changes when what is trained would, and not when shards or checkpoint have moved."""
        settings = {name: value for name, value in to_dict(self.config).items() if name not in RESOURCES}
        if self.start:
            del settings["train"]["model"]  # it is the checkpoint's
        return _hash([self.name, self.footage or self.data, self.learnt or self.start, settings])


@dataclass(frozen=True)
class Progress:
    """How far a job is."""

    state: str
    """What is being done, in a word: training, baking, scoring, filming."""
    step: int
    steps: int
    psnr_db: float | None = None
    """Of the head on the training frames that are held out."""


Report = Callable[[Progress], None]


def is_done(job: Job) -> bool:
    """Whether the identity folder holds the answer to exactly this job."""
    return stored_json(job.folder, DONE) == _answer(job)


def is_adapted(job: Job) -> bool:
    """Whether it does, or would if it named the consent of this job."""
    return stored_json(job.folder, DONE).get("job") == job.key


def write_done(job: Job) -> None:
    """Says that the identity folder holds the answer."""
    open_storage(job.folder).write(DONE, json.dumps(_answer(job)).encode())


def stored_json(folder: str, name: str) -> dict[str, Any]:
    """A JSON file of a folder or prefix; empty when there is none."""
    try:
        return json.loads(open_storage(folder).read(name))
    except (MissingError, ValueError):
        return {}


def _answer(job: Job) -> dict[str, str]:
    return {"job": job.key, "consent": job.consent}


def _hash(plain: list[Any]) -> str:
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()
