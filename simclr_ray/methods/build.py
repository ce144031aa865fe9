"""Builds the method of a config, with initial weights from the seed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, TypeVar, assert_never

import torch
from torch import Tensor

from simclr_ray.config import (
    CLASSIFYING,
    BarlowTwinsConfig,
    BYOLConfig,
    DINOConfig,
    DistillationConfig,
    MethodConfig,
    MoCoConfig,
    ModelConfig,
    NNCLRConfig,
    SimCLRConfig,
    SimSiamConfig,
    SupervisedConfig,
    SwAVConfig,
    VICRegConfig,
)
from simclr_ray.config.checks import require
from simclr_ray.methods.barlow_twins import BarlowTwins
from simclr_ray.methods.byol import BYOL
from simclr_ray.methods.dino import DINO
from simclr_ray.methods.distillation import Distillation
from simclr_ray.methods.method import Method
from simclr_ray.methods.moco import MoCoQueue, MoCoV3
from simclr_ray.methods.nnclr import NNCLR
from simclr_ray.methods.simclr import SimCLR
from simclr_ray.methods.simsiam import SimSiam
from simclr_ray.methods.supervised import Supervised
from simclr_ray.methods.swav import SwAV
from simclr_ray.methods.teacher import Teacher
from simclr_ray.methods.vicreg import VICReg
from simclr_ray.model.build import draw_encoder
from simclr_ray.model.encoder import Encoder
from simclr_ray.model.heads import leading_layers, predictor, projection_dim, projection_head
from simclr_ray.model.initial import load_head, load_initial

T = TypeVar("T")


def build_method(
    model: ModelConfig,
    method: MethodConfig,
    seed: int,
    *,
    size: int,
    initial: Mapping[str, Tensor] | None = None,
    teacher: Teacher | None = None,
) -> Method:
    """The method on the CPU, for views of `size` pixels, with weights drawn from `seed`.

    `initial`: the encoder's, in place of drawn ones; a momentum teacher starts from them too. `teacher`: that of a
    distillation; without it one of the student's shape is drawn, which serves plans and tests.
    """
    return _seeded(lambda: draw_method(model, method, size, initial, teacher), seed)


def build_encoder(model: ModelConfig, seed: int, *, size: int) -> Encoder:
    """The encoder of `build_method` alone, with the weights drawn from `seed`."""
    return _seeded(lambda: draw_encoder(model, size), seed)


def build_teacher(teacher: Teacher) -> Supervised:
    """The teacher on the CPU, in float32, for images of any size that its network takes."""
    model, method = teacher.config.model, teacher.config.method
    assert isinstance(method, CLASSIFYING)
    network = _seeded(lambda: _draw_classifier(model, method, teacher.config.augment.size), seed=0)
    network.load_state_dict(teacher.weights)
    return network


def draw_method(
    model: ModelConfig,
    method: MethodConfig,
    size: int,
    initial: Mapping[str, Tensor] | None = None,
    teacher: Teacher | None = None,
) -> Method:
    """The method on torch's default device, with weights from its generator; on "meta" it has shapes and no weights.

    Encoder, head and predictor are drawn in this order, so that none depends on what follows it.
    """
    encoder = draw_encoder(model, size)
    if initial is not None:
        load_initial(encoder, initial, str(model.init))
    head = projection_head(model, encoder.feature_dim)
    dim = projection_dim(model, encoder.feature_dim)
    match method:
        case SimCLRConfig():
            return SimCLR(encoder, head, method.temperature)
        case BYOLConfig():
            return BYOL(encoder, head, predictor(dim, method.predictor_hidden), method.momentum)
        case SimSiamConfig():
            hidden = method.predictor_hidden or max(1, dim // 4)
            return SimSiam(encoder, head, predictor(dim, hidden), predictor_decays=method.predictor_decays)
        case MoCoConfig():
            return _draw_moco(encoder, head, dim, method)
        case NNCLRConfig():
            predicting = predictor(dim, method.predictor_hidden)
            return NNCLR(encoder, head, predicting, keys=method.queue, dim=dim, temperature=method.temperature)
        case BarlowTwinsConfig():
            return BarlowTwins(encoder, head, method.off_diagonal_weight)
        case VICRegConfig():
            return VICReg(encoder, head, **_settings(method))
        case SwAVConfig():
            return SwAV(encoder, head, dim=dim, **_settings(method))
        case DINOConfig():
            return DINO(encoder, head, dim=dim, settings=method)
        case SupervisedConfig():
            return _classifier(encoder, head, model, method, initial or {})
        case DistillationConfig():
            student = _classifier(encoder, head, model, method, initial or {})
            return Distillation(student, _fixed(teacher, model, method, size), method.temperature)
    assert_never(method)


def _settings(method: MethodConfig) -> dict[str, Any]:
    """Those of a method whose module takes all of them under their names."""
    return {key: value for key, value in asdict(method).items() if key != "name"}


def _fixed(teacher: Teacher | None, model: ModelConfig, method: DistillationConfig, size: int) -> Supervised:
    return build_teacher(teacher) if teacher else _draw_classifier(model, method, size)


def _draw_classifier(model: ModelConfig, method: SupervisedConfig | DistillationConfig, size: int) -> Supervised:
    encoder = draw_encoder(model, size)
    return _classifier(encoder, projection_head(model, encoder.feature_dim), model, method, {})


def _classifier(
    encoder: Encoder,
    head: torch.nn.Sequential,
    model: ModelConfig,
    method: SupervisedConfig | DistillationConfig,
    initial: Mapping[str, Tensor],
) -> Supervised:
    """The network of a method with a classifier on the first layers of `head`."""
    require(method.classes is not None, "method.classes is not known: set it to the number of classes")
    assert method.classes is not None
    kept = leading_layers(head, method.from_head)
    load_head(kept, initial)
    dim = (model.head_hidden or encoder.feature_dim) if method.from_head else encoder.feature_dim
    smoothing = method.label_smoothing if isinstance(method, SupervisedConfig) else 0.0
    return Supervised(encoder, kept, dim=dim, classes=method.classes, label_smoothing=smoothing)


def _draw_moco(encoder: Encoder, head: torch.nn.Module, dim: int, method: MoCoConfig) -> Method:
    temperature, momentum = method.temperature, method.momentum
    if method.queue:
        return MoCoQueue(encoder, head, keys=method.queue, dim=dim, temperature=temperature, momentum=momentum)
    if method.frozen_patches and encoder.patch_projection is not None:
        encoder.patch_projection.requires_grad_(False)
    predicting = predictor(dim, method.predictor_hidden, last_batchnorm=method.predictor_batchnorm)
    return MoCoV3(encoder, head, predicting, temperature=temperature, momentum=momentum)


def _seeded(draw: Callable[[], T], seed: int) -> T:
    """The result of `draw` on the CPU under `seed`; the global random state is neither read nor changed."""
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed the GPUs too
        return draw()
