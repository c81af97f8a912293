"""From trained networks to an identity folder that stands on its own: the baked head, and the backdrop to render it over."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from fiag_dist.acting.actor import INFO, Actor, IdentityInfo, load_info, save_actor
from fiag_dist.acting.backdrop import write_backdrop
from fiag_dist.config import PretrainConfig
from fiag_dist.configfile import from_dict
from fiag_dist.dist import checkpoint
from fiag_dist.errors import DataError
from fiag_dist.model.head import Head
from fiag_dist.model.motion import PersonalNet
from fiag_dist.shards.manifest import Manifest, read_manifest
from fiag_dist.shards.reader import iter_frames, read_meta
from fiag_dist.stages import learnt_degree
from fiag_dist.storage import Storage, open_storage
from fiag_dist.training.formats import check_formats
from fiag_dist.training.start import load_head

PEOPLE = "identities"
"""Folder of a run for its people; what else lies there goes with them when there is a newer checkpoint."""
BAKED_FROM = "checkpoint.sha256"
"""Beside the people of a run: the hash of the checkpoint's COMMIT.json, which has those of all its files."""


def write_identity_folder(
    folder: Path,
    head: Head,
    personal: PersonalNet,
    data: Storage,
    manifest: Manifest,
    name: str,
    start: str,
    steps: int,
    embedding: torch.Tensor | None = None,
    footage: str | None = None,
) -> None:
    """Bakes identity `name` for its embedding and writes its folder, identity.json last; one that is there goes first, so that a half-replaced folder is none.

    start: the checkpoint that it came from, empty for one trained from scratch. embedding: [id_dim]; None: the mean over the clip. footage: SHA-256
    of the shards that it learnt from; None: those that are there.
    """
    entry = manifest.entry(name)
    meta = read_meta(data, entry)
    head.eval()
    device = head.face_field.means.device
    embedding = torch.from_numpy(meta.embedding) if embedding is None else embedding
    actor = Actor.bake(head, personal, embedding.to(device))
    info = IdentityInfo(
        name=name,
        size=manifest.size,
        fps=manifest.fps,
        extractor=manifest.audio.extractor,
        audio_dim=manifest.audio.dim,
        audio_window=manifest.audio.window,
        motion=head.config.motion,
        data=data.url,
        checkpoint=start,
        steps=steps,
        source=entry.source.file if entry.source else "",
        consent=entry.consent,
        footage=entry.sha256 if footage is None else footage,
    )
    (folder / INFO).unlink(missing_ok=True)
    write_backdrop(folder, iter_frames(data, entry, "train"), meta, manifest.fps)
    save_actor(folder, actor, info)


def bake_run(run: str, below: str = PEOPLE, change: Callable[[Head], None] = lambda head: None, data: str = "") -> Path:
    """The identities that a pretraining was trained on, as folders in `below` in its run folder: each with its own personal net.

    Those baked from the newest checkpoint before are kept; of another one, which may have had the same name, all go. Who was taken out of the shards since
    is left out, in a line. change: what is done to the head first. data: where the shards are; empty: where they were in training. Raises CheckpointError
    when the run has none, or shards hold something else by now, and DataError when they hold none of its people.
    """
    storage, folder = checkpoint.resolve(run)
    stored = checkpoint.load(storage, folder)
    config = from_dict(PretrainConfig, stored.info["config"], f"{run}: COMMIT.json")
    shards = open_storage(data or config.data)
    manifest = read_manifest(shards)
    out, start = Path(run) / below, f"{storage.url}/{folder}"
    check_formats(manifest, stored.info["formats"], f"run {run}")
    # What encodes in training may need a device that this machine has not.
    anywhere = replace(config.train, encoder="auto")
    head = load_head(anywhere, stored.info["formats"], stored.shared, averaged=False)
    head.sh_degree = learnt_degree(stored.step, config.train)
    change(head)
    learnt_from = stored.info.get("footage", {})  # checkpoints of before did not say
    known = open_storage(out)
    source = checkpoint.commit_sha256(storage, folder).encode()
    if not known.exists(BAKED_FROM) or known.read(BAKED_FROM) != source:
        known.delete("")
        known.write(BAKED_FROM, source)
    there = [name for name in stored.identities if name in manifest.names]
    if not there:
        raise DataError(f"{shards.url}: holds nobody of run {run}; name its shards with --data, or pack them again")
    if gone := sorted(set(stored.identities) - set(there)):
        print(f"{run}: left out, no longer in {shards.url}: {', '.join(gone)}", flush=True)
    for name in there:
        done = out / name
        if (done / INFO).is_file() and load_info(done).checkpoint == start:
            continue
        personal = head.universal.new_personal()
        tensors = stored.identities[name]
        personal.load_state_dict({key: tensors[key] for key in personal.state_dict()})
        embedding, footage = tensors[checkpoint.EMBEDDING], learnt_from.get(name, "")
        write_identity_folder(done, head, personal, shards, manifest, name, start, stored.step, embedding, footage)
    return out
