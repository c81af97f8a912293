"""fiag-dist pretrain --dry-run-world N: what each of N ranks would own and hold, and what would be refused, without starting anything."""

from collections.abc import Iterator

from fiag_dist.config import PretrainConfig
from fiag_dist.dist.ownership import Ownership
from fiag_dist.pretraining.scaling import Memory, Sizes, memory, sizes, traffic
from fiag_dist.shards.manifest import IdentityEntry, Manifest
from fiag_dist.stages import total_steps

NAMES_SHOWN = 4
MIB = 2**20


def report(config: PretrainConfig, manifest: Manifest, ownership: Ownership) -> str:
    """The plan of a run in lines: batch, shared model, each rank's people and memory, balance."""
    return "\n".join(_lines(config, manifest, ownership))


def _lines(config: PretrainConfig, manifest: Manifest, ownership: Ownership) -> Iterator[str]:
    train, world, lanes = config.train, ownership.world, len(ownership.lanes)
    found = sizes(train, manifest.id_embedding.dim, manifest.audio.dim, manifest.audio.window)
    entries = {name: manifest.entry(name) for name in ownership.names}
    frames, steps = sum(entry.split.train for entry in entries.values()), total_steps(train)
    yield f"{config.runs}/{config.name}: {world} rank{'s' * (world > 1)}, {len(entries)} identities"
    yield (
        f"batch    {lanes} frames of {manifest.size}x{manifest.size} a step, one from each lane of identities; "
        f"{steps} steps see {steps * lanes} frames, {steps * lanes / frames:.1f} times the {frames} there are"
    )
    first = _memory(config, found, ownership, 0)
    yield (
        f"shared   {found.shared} parameters ({found.field} of Gaussians) on every rank, ZeRO stage {config.zero_stage}: "
        f"{_mib(first.total - first.personal)} MiB a rank, {_mib(traffic(found, world))} MiB sent by a rank a step"
    )
    yield f"personal {found.personal} parameters an identity, with its owner alone"
    yield "rank  lanes  people  frames  shared MiB  personal MiB  data MiB  sum MiB  who"
    sums, loads = [], []
    for rank in range(world):
        names, held = ownership.of_rank(rank), _memory(config, found, ownership, rank)
        data = sum(_data_bytes(entries[name], manifest) for name in names)
        loads.append(sum(entries[name].split.train for name in names))
        sums.append(held.total + data)
        cells = (rank, len(ownership.lanes_of(rank)), len(names), loads[-1])
        sizes_mib = (_mib(held.total - held.personal), _mib(held.personal), _mib(data), _mib(sums[-1]))
        row = [f"{cell:>{w}}" for cell, w in zip((*cells, *sizes_mib), (4, 5, 6, 6, 10, 12, 8, 7), strict=True)]
        yield "  ".join(row) + "  " + _shown(names)
    yield (
        f"balance  frames a rank {min(loads)} to {max(loads)}, memory {_mib(min(sums))} to {_mib(max(sums))} MiB, "
        "without the process itself and what a step needs while it is computed (docs/scaling.md)"
    )


def _memory(config: PretrainConfig, found: Sizes, ownership: Ownership, rank: int) -> Memory:
    lanes = ownership.lanes_of(rank)
    return memory(
        found,
        zero_stage=config.zero_stage,
        world=ownership.world,
        owned=len(ownership.of_rank(rank)),
        lanes=len(lanes),
        alone=sum(len(ownership.lanes[lane]) == 1 for lane in lanes) if len(ownership.lanes) > 1 else 0,
    )


def _data_bytes(entry: IdentityEntry, manifest: Manifest) -> int:
    """What a rank keeps in host memory of an identity's footage: sound, speech, poses and plate."""
    speech = entry.num_frames * manifest.audio.dim * manifest.audio.window * 2
    tracks = entry.num_frames * 4 * (16 + 12 + len(manifest.expression) + 6)
    once = int(entry.seconds * manifest.sample_rate) * 4 + 2 * 3 * manifest.size**2
    return speech + tracks + once


def _shown(names: tuple[str, ...]) -> str:
    more = len(names) - NAMES_SHOWN
    return ", ".join(names[:NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _mib(count: float) -> str:
    return f"{count / MIB:.1f}"
