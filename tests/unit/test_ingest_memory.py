"""What a worker holds does not grow with the clip: minutes of one, packed in a process of their own."""

import subprocess
import sys
from pathlib import Path

import av
import pytest

ROOT = Path(__file__).parents[2]
PACK = """
import sys
from pathlib import Path
from fiag_dist.config import PackConfig
from fiag_dist.ingest.clip import pack_clip
from fiag_dist.memory import peak_resident_mib
meta, frames = pack_clip(Path(sys.argv[1]), PackConfig(size=128, extractor="mel"), "looped")
print(sum(1 for _ in frames), round(peak_resident_mib() * 2**20))
"""


def looped(clip: Path, out: Path, seconds: float) -> Path:
    """The clip over and over, nothing coded anew."""
    with av.open(str(clip)) as source, av.open(str(out), "w") as target:
        streams = {s.index: target.add_stream_from_template(s) for s in (*source.streams.video, *source.streams.audio)}
        length_s, done_s = (source.duration or 0) / av.time_base, 0.0
        while done_s < seconds:
            source.seek(0)
            for packet in source.demux(*source.streams.video, *source.streams.audio):
                if packet.dts is None or packet.pts is None:
                    continue
                shift = round(done_s / packet.time_base)
                if (packet.pts + shift) * packet.time_base < seconds:
                    packet.stream, packet.pts, packet.dts = (
                        streams[packet.stream_index],
                        packet.pts + shift,
                        packet.dts + shift,
                    )
                    target.mux(packet)
            done_s += length_s
    return out


def packed(clip: Path) -> tuple[int, int]:
    """Frames, and the most memory that the process held, bytes."""
    done = subprocess.run([sys.executable, "-c", PACK, str(clip)], cwd=ROOT, capture_output=True, text=True, check=True)
    frames, peak = done.stdout.split()
    return int(frames), int(peak)


@pytest.mark.slow
@pytest.mark.weights
@pytest.mark.clips
@pytest.mark.timeout(1800)
def test_memory_hardly_grows_with_the_clip(clips: Path, tmp_path: Path) -> None:
    short, long = (packed(looped(clips / "anchor_a.mp4", tmp_path / f"{s}.mp4", s)) for s in (60, 180))
    assert long[0] - short[0] == pytest.approx(3000, abs=25)
    a_frame = (long[1] - short[1]) / (long[0] - short[0])
    assert a_frame < 20_000
    assert long[1] + a_frame * (15_000 - long[0]) < 1.5e9, "ten minutes"
