"""A small head and a frame of it, made of random numbers, for tests of the model."""

import numpy as np
import torch

from fiag_dist.config import AudioConfig, FieldConfig, GridConfig, IdentityConfig, ModelConfig, MotionConfig
from fiag_dist.model.head import Head
from fiag_dist.types import Camera, Label, Shot

SIZE = 48


def small_config(**motion) -> ModelConfig:
    grid = GridConfig(levels=3, base=4, finest=12.0, init=0.1)
    motion = {"audio": AudioConfig(noise=0.0), "hook_k": 5} | motion
    return ModelConfig(
        field=FieldConfig(num_face=300, num_mouth=80, capacity_face=400, capacity_mouth=120, sh_degree=1),
        identity=IdentityConfig(grid=grid, hidden=16),
        motion=MotionConfig(
            universal_grid=grid,
            personal_grid=grid,
            mouth_grid=grid,
            universal_hidden=16,
            personal_hidden=8,
            **motion,
        ),
    )


def rest_landmarks(seed: int = 0) -> torch.Tensor:
    """Points on the front of an ellipsoid as large as a face, [478, 3]."""
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(478, 3))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    points[:, 2] = np.abs(points[:, 2])
    points[1] = 0, 0, 1  # the tip of the nose
    return torch.from_numpy((points * np.array([0.07, 0.10, 0.08])).astype(np.float32))


def small_head(config: ModelConfig | None = None, seed: int = 0) -> Head:
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    head = Head(config or small_config(), id_dim=8, audio_dim=6, audio_window=2, rest_landmarks=rest_landmarks())
    head.face_field.fill(rng.normal(0, 0.04, (300, 3)).clip(-0.14, 0.14), rng.random((300, 3)), 0.5)
    head.mouth_field.fill(rng.normal(0, 0.01, (80, 3)) - np.array([0, 0.05, -0.06]), rng.random((80, 3)), 0.5)
    head.universal.listener.fit([(torch.randn(64, 8, 6, 2), torch.ones(64, 8))])
    return head


def camera(size: int = SIZE) -> Camera:
    viewmat = torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0]))
    viewmat[2, 3] = 1.6
    focal = 4.7 * size
    K = torch.tensor([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]])
    return Camera(viewmat, K, size, size)


def small_shot(identity: str = "anna", seed: int = 0) -> Shot:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.zeros(SIZE, SIZE, dtype=torch.uint8)
    labels[10:40, 12:36] = Label.FACE
    labels[30:34, 20:28] = Label.MOUTH
    labels[5:10, 12:36] = Label.HAIR
    rest = rest_landmarks()
    return Shot(
        identity=identity,
        index=seed,
        image=torch.rand(3, SIZE, SIZE, generator=generator),
        alpha=(labels > 0).float()[None],
        labels=labels,
        audio=torch.randn(8, 6, 2, generator=generator),
        embedding=torch.nn.functional.normalize(torch.randn(8, generator=generator), dim=0),
        expression=torch.rand(9, generator=generator),
        landmarks=rest + 1e-3 * torch.randn(478, 3, generator=generator),
        rest_landmarks=rest,
        camera=camera(),
        lips_rect=(18, 28, 30, 36),
        blink=0.0,
    )
