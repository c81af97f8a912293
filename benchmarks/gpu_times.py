"""The GPU check's clocks: milliseconds on the device, by CUDA events, or by the host's clock where there is none."""

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from gpu_step import config, training

from fiag_dist.acting.actor import Actor
from fiag_dist.bench.scene import head_scene
from fiag_dist.config import GridConfig
from fiag_dist.images import ssim
from fiag_dist.images.raster import Splats, rasterize_frames
from fiag_dist.model import grid
from fiag_dist.training.step import Training

WARM_UP = 3


def milliseconds(run: Callable[[], Any], device: torch.device, repeat: int) -> dict[str, float]:
    """Median, minimum and maximum of single runs after some to warm up."""
    times_ms = []
    for turn in range(-WARM_UP, repeat):
        if device.type == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            run()
            end.record()
            end.synchronize()
            took_ms = begin.elapsed_time(end)
        else:
            began = time.perf_counter()
            run()
            took_ms = 1e3 * (time.perf_counter() - began)
        if turn >= 0:
            times_ms.append(took_ms)
    return {"median": statistics.median(times_ms), "min": min(times_ms), "max": max(times_ms)}


def raster_times(device: torch.device, num: int, size: int, frames: tuple[int, ...], repeat: int) -> dict[str, Any]:
    """Forward, and forward with backward, of B frames of `num` Gaussians in one call."""
    found: dict[str, Any] = {"num_gaussians": num, "size": size}
    for count in frames:
        scenes = [head_scene(num, 3, size, seed) for seed in range(count)]
        splats = [Splats(*(x.to(device).requires_grad_() for x in values)) for values, _ in scenes]
        cameras = [replace(c, viewmat=c.viewmat.to(device), K=c.K.to(device)) for _, c in scenes]
        background, weights = torch.zeros(3, device=device), torch.rand(3, size, size, device=device)

        def forward(splats=splats, cameras=cameras, background=background) -> list:
            with torch.no_grad():
                return rasterize_frames(splats, cameras, background)

        def both(splats=splats, cameras=cameras, background=background, weights=weights) -> None:
            images = [r.image for r in rasterize_frames(splats, cameras, background)]
            torch.autograd.grad((torch.stack(images) * weights).sum(), [p for s in splats for p in vars(s).values()])

        times = {"forward_ms": milliseconds(forward, device, repeat), "both_ms": milliseconds(both, device, repeat)}
        found[f"B={count}"] = times | {"both_ms_per_frame": times["both_ms"]["median"] / count}
    return found


def encoder_times(device: torch.device, num: int, repeat: int) -> dict[str, Any]:
    """12 levels of one feature, tables and points with gradients, of each backend that runs."""
    auto = grid.choose("auto", device).name
    found: dict[str, Any] = {"num_points": num, "auto": auto}
    points = head_scene(num, 3, 256)[0][0].to(device).requires_grad_()
    for backend in sorted({"torch", auto}):
        encoder = grid.TriPlane(GridConfig(finest=128.0, init=0.1), backend).to(device)  # type: ignore[arg-type]

        def both(encoder=encoder) -> None:
            torch.autograd.grad(encoder(points).sum(), [encoder.table, points])

        found[backend] = {"both_ms": milliseconds(both, device, repeat)}
    return found


def ssim_times(device: torch.device, size: int, repeat: int) -> dict[str, Any]:
    """One pair of images, with the gradient."""
    image, target = (
        torch.rand(3, size, size, device=device, requires_grad=True),
        torch.rand(3, size, size, device=device),
    )
    found: dict[str, Any] = {"size": size}
    for backend in sorted({"torch", ssim.choose("auto", device).name}):

        def both(backend: Any = backend) -> None:
            torch.autograd.grad(ssim.ssim(image, target, backend), [image])

        found[backend] = {"both_ms": milliseconds(both, device, repeat)}
    return found


def step_times(shards: str, device: torch.device, num: int, frames: tuple[int, ...], repeat: int) -> dict[str, Any]:
    """The whole training step in the motion stage with so many frames in it; the feed's work is in it too."""
    found: dict[str, Any] = {"num_gaussians": num}
    for count in frames:
        settings = config(num, 100_000, count)
        middle = settings.stages.landmark_steps + settings.steps // 2
        with training(settings, shards, device, middle) as run:

            def learn(run: Training = run) -> None:
                run.learn(run.feed.next(run.step))

            times = milliseconds(learn, device, repeat)
        found[f"frames={count}"] = {"step_ms": times, "step_ms_per_frame": times["median"] / count}
    return found


def render_times(shards: str, device: torch.device, num: int, frames: int, repeat: int) -> dict[str, Any]:
    """Frames a second of one baked person: motion, both branches, composite over a backdrop on the device."""
    with training(config(num, 1000, frames), shards, device) as run:
        name = run.feed.names[0]
        shot = run.feed.test_shots(name, 1)[0]
        actor = Actor.bake(run.head, run.pool[name], run.feed.embedding(name))

        def render() -> None:
            actor(shot.audio, shot.expression, shot.camera).over(shot.image)

        with torch.no_grad():
            times = milliseconds(render, device, repeat)
    return {"num_gaussians": num, "frame_ms": times, "frames_per_s": 1e3 / times["median"], "size": shot.camera.width}
