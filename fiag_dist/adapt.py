"""fiag-dist adapt: a folder of clips in, a folder of identities out, one Ray Tune trial a clip."""

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console

from fiag_dist.adaptation import search
from fiag_dist.adaptation.alone import alone_in
from fiag_dist.adaptation.campaign import adapt_all
from fiag_dist.adaptation.job import Job, Search, is_done
from fiag_dist.adaptation.page import PAGE, write_page
from fiag_dist.adaptation.results import CSV, refused, result_of, results_in, table, write_csv
from fiag_dist.adaptation.standings import Standings
from fiag_dist.cluster import start_ray
from fiag_dist.config import AdaptConfig, PackConfig
from fiag_dist.configfile import from_yaml
from fiag_dist.dist import checkpoint
from fiag_dist.ending import guarded
from fiag_dist.errors import ConfigError, DataError, meant
from fiag_dist.ingest.gather import find_clips
from fiag_dist.ingest.speech import FROM_FILE
from fiag_dist.pack import EMBEDDING, pack
from fiag_dist.shards.manifest import BESIDE, Manifest, read_manifest
from fiag_dist.shards.manifest import FILE as MANIFEST
from fiag_dist.storage import open_storage
from fiag_dist.training.bake import PEOPLE
from fiag_dist.training.formats import check_channels, check_formats
from fiag_dist.training.settings import refuse_below, refuse_nonsense

WITHOUT_EFFECT = ("--train.model", "--train.keep")
"""Flags of a pretraining: an adaptation has its checkpoint's model, and keeps no checkpoint."""


@dataclass(frozen=True, kw_only=True)
class AdaptCommand:
    """Adapts every clip of a folder, or every identity of packed shards, to a pretrained checkpoint. Run again, it does only what is missing."""

    clips: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="CLIPS_OR_SHARDS")]
    """Folder of clips, a clip, or the folder or s3:// prefix of packed shards."""
    checkpoint: Annotated[str, tyro.conf.arg(name="from")]
    """Run folder of a pretraining (its newest checkpoint), or one checkpoints/step-NNNNNNNN."""
    out: str
    """Folder or s3://bucket/prefix of the identity folders."""
    names: tuple[str, ...] = ()
    """Only these identities; none: all."""
    consent: str = ""
    """What the people in the clips agreed to, in free text, for packing: kept in each identity and in every rendered video."""
    scratch: bool = False
    """Train each identity from scratch as well, for as many steps, into its folder scratch/: what adaptation is compared with."""
    search: str = ""
    """Try settings for each identity, and keep the best by PSNR on held-out training frames: of lr, steps, universal, separated by commas."""
    samples: int = 4
    """How many settings a search tries for each identity, the given ones among them."""
    address: str = ""
    """Of a Ray cluster: host:port, or `auto`; none: RAY_ADDRESS, else this machine alone. All its machines must see the paths given here."""
    config: str = ""
    """YAML file of the settings below, e.g. configs/adapt_fast.yaml. The flags --train.model.* and --train.keep* are a pretraining's and refused here."""
    settings: Annotated[AdaptConfig, tyro.conf.arg(name="")] = field(default_factory=AdaptConfig)


def main(argv: list[str]) -> int:
    """Returns 0 when every identity is done, 1 when some failed or a clip was refused."""
    command = _parse(argv)
    searched = _searched(command)  # what can be refused is refused before the clips are packed
    storage, folder = checkpoint.resolve(command.checkpoint)
    formats = checkpoint.load(storage, folder).info["formats"]
    out = _absolute(command.out)
    above, _, last = out.rpartition("/")
    if open_storage(out).exists(MANIFEST):
        raise ConfigError(f"--out {command.out}: holds shards; give identities a folder of their own")
    if last == PEOPLE and above and open_storage(above).exists(checkpoint.FOLDER):
        raise ConfigError(
            f"--out {command.out}: is where the people of a run are baked, and all others are taken away; give another folder"
        )
    with alone_in(out):
        data, unfit = _packed(command, formats)
        manifest = read_manifest(data)
        check_channels(formats, command.checkpoint)
        check_formats(manifest, formats, f"checkpoint {command.checkpoint}")
        learnt = checkpoint.commit_sha256(storage, folder)
        jobs = _jobs(command, searched, data, manifest, f"{storage.url}/{folder}", learnt)
        return _adapted(command, jobs, unfit)


def _adapted(command: AdaptCommand, jobs: Sequence[Job], unfit: Mapping[str, str]) -> int:
    """Does what is missing, and reports. unfit: why clips were refused, by name. Returns the status."""
    todo = [job for job in jobs if not is_done(job)]
    console = Console(highlight=False, markup=False)
    console.print(
        f"{len(jobs)} identities, {len(jobs) - len(todo)} done before, {len(todo)} to adapt from {command.checkpoint}"
    )
    failed: Mapping[str, str] = {}
    try:
        if todo:
            start_ray(command.address)
            with Standings([job.name for job in todo], console) as standings:
                failed = adapt_all(todo, command.out, standings, console.print)
    finally:  # after Ctrl-C too: what is finished is finished
        _report(command, jobs, failed, unfit, console)
    for name, why in failed.items():
        print(f"fiag-dist: {name} failed: {why}; the same command goes on from its last checkpoint", file=sys.stderr)
    return 1 if failed or unfit else 0


def _parse(argv: list[str]) -> AdaptCommand:
    """Defaults < the file behind --config < flags."""
    path = next((argv[i + 1] for i, word in enumerate(argv[:-1]) if word == "--config"), None)
    path = path or next((word.partition("=")[2] for word in argv if word.startswith("--config=")), None)
    idle = next((word for word in argv if word.startswith(WITHOUT_EFFECT)), None)
    if idle:
        raise ConfigError(
            f"{idle}: an adaptation has its checkpoint's model and keeps no checkpoints; this is a setting of: fiag-dist pretrain"
        )
    settings = from_yaml(AdaptConfig, path) if path else AdaptConfig()
    missing: Any = tyro.MISSING
    default = AdaptCommand(clips=missing, checkpoint=missing, out=missing, settings=settings)
    return tyro.cli(AdaptCommand, args=argv, default=default, prog="fiag-dist adapt")


def _packed(command: AdaptCommand, formats: dict[str, Any]) -> tuple[str, Mapping[str, str]]:
    """The shards to adapt from: given, or packed now beside the identities, in the checkpoint's formats; and why clips were refused, by name."""
    if open_storage(command.clips).exists(MANIFEST):
        if command.consent:
            raise ConfigError(
                f"--consent: {command.clips} is packed already, and consent is kept in shards; give the clips, or: fiag-dist pack CLIPS --consent TEXT"
            )
        return command.clips, {}
    extractor = formats["extractor"]
    if extractor.startswith(FROM_FILE):
        raise ConfigError(
            f"{command.clips}: the checkpoint hears speech features that another program made ({extractor}); make them for these clips, pack, and adapt "
            "the shards: fiag-dist pack CLIPS --out SHARDS --extractor 'file:PATTERN'"
        )
    path = Path(command.clips)
    if not path.exists():
        raise DataError(
            f"{command.clips}: no such folder, clip or shards; give clips (mp4, mov, mkv, webm, avi) or a folder with {MANIFEST}"
        )
    if formats["id_model"] != EMBEDDING.model:
        raise ConfigError(
            f"--from {command.checkpoint}: its people are told apart by {formats['id_model']}, those of clips by {EMBEDDING.model}, so it is no start for "
            "them (demo heads teach nothing of people); pretrain on clips: fiag-dist pack CLIPS --out SHARDS"
        )
    shards = f"{command.out.rstrip('/')}/{BESIDE}"
    settings = PackConfig(size=formats["size"], fps=formats["fps"], extractor=extractor)
    packed = pack(_clips(path, command.names), shards, settings, consent=command.consent, address=command.address)
    return shards, packed.refused


def _clips(path: Path, names: Sequence[str]) -> list[Path]:
    """Those that become the identities asked for. Raises DataError for a name that no clip has."""
    if not names:
        return [path]
    found = find_clips([path])
    for name in names:
        if name not in found:
            raise DataError(f"--names {name}: no clip in {path} becomes this identity; {meant(name, found, 20)}")
    return [clip for name in dict.fromkeys(names) for clip in found[name]]


def _asked(command: AdaptCommand, data: str, manifest: Manifest) -> Sequence[str]:
    """Who is to be adapted: those named, else all of the shards given, or of the clips given: what was packed before is not asked for now."""
    if command.names or data == command.clips:
        return command.names or manifest.names
    return [name for name in find_clips([Path(command.clips)]) if name in manifest.names]


def _searched(command: AdaptCommand) -> Search:
    """What is searched. Raises ConfigError for settings that can't be meant."""
    settings, searched = command.settings, search.parse(command.search, command.samples)
    if searched.settings and not settings.plateau.frames:
        raise ConfigError("--search with --plateau.frames 0: samples are judged by held-out frames; hold some out")
    refuse_nonsense(settings.train)
    if settings.train.frames_per_step != 1:
        raise ConfigError(
            f"train.frames_per_step is {settings.train.frames_per_step}: the frames of a step come from different people, and an adaptation has one; give 1"
        )
    refuse_below({"retries": 0}, settings)
    if settings.room < 1:
        raise ConfigError(f"--room {settings.room:g}: a field can't be smaller than the checkpoint's; give 1 or more")
    return searched


def _jobs(command: AdaptCommand, searched: Search, data: str, manifest: Manifest, start: str, learnt: str) -> list[Job]:
    """One for each identity, without what this process alone knows: paths are absolute."""
    names = dict.fromkeys(_asked(command, data, manifest))
    if BESIDE in names:
        raise DataError(f"{BESIDE}: in --out this is where clips are packed; give the clip another name")
    entries = [manifest.entry(name) for name in names]
    data, start, out = map(_absolute, (data, start, command.out))
    return [
        Job(
            name=e.name,
            data=data,
            start=start,
            folder=f"{out}/{e.name}",
            config=command.settings,
            scratch=command.scratch,
            search=searched,
            footage=e.sha256,
            learnt=learnt,
            consent=e.consent,
        )
        for e in entries
    ]


def _absolute(url: str) -> str:
    return url.rstrip("/") if "://" in url else str(Path(url).expanduser().resolve())


def _report(
    command: AdaptCommand,
    jobs: Sequence[Job],
    failed: Mapping[str, str],
    unfit: Mapping[str, str],
    console: Console,
) -> None:
    """Writes the table and the page of all identities in --out, shows those of this command, and says where everything is."""
    storage, known = open_storage(_absolute(command.out)), {job.name for job in jobs}
    results = [result_of(job, failed) for job in jobs]
    results += [refused(name, why) for name, why in unfit.items() if name not in known]  # else it was packed before
    everybody = results_in(storage, results)
    write_csv(storage, everybody)
    write_page(storage, everybody, f"Identities in {Path(command.out).name}")
    console.print(table(results))
    missing = sum(result.values["state"] == "missing" for result in results)
    if missing:
        console.print(f"{missing} of {len(jobs)} are not done yet: the same command goes on with them")
    if unfit:
        console.print(f"{len(unfit)} clips were refused in packing; why is above, and in {CSV}")
    out = command.out.rstrip("/")
    console.print(
        f"identities: {out}   table: {out}/{CSV}   page: {out}/{PAGE}   curves: tensorboard --logdir {shlex.quote(out)}",
        soft_wrap=True,
    )


if __name__ == "__main__":
    sys.exit(guarded(main))
