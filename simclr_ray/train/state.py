"""The state that a run carries from step to step: model, optimizer, global step and ids of undecodable images.

Order and augmentation need no state: they are functions of the seed and the step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from simclr_ray.config import BadInput, Config
from simclr_ray.methods.build import build_method
from simclr_ray.methods.method import Method
from simclr_ray.methods.teacher import Teacher
from simclr_ray.optim.build import build_optimizer
from simclr_ray.train.probe import Probe

ALIGNMENT = 16
"""Bytes; of the tensors in a snapshot's buffer."""


@dataclass
class TrainState:
    """The mutable state of training."""

    model: Method
    optimizer: torch.optim.Optimizer
    step: int = 0
    """Global steps done."""
    bad_ids: set[int] = field(default_factory=set)
    """Ids of images that could not be decoded so far."""
    done: bool = False
    """No step follows, whatever the next command: the last epoch is trained, or the checks no longer improve."""


@dataclass(frozen=True)
class Snapshot:
    """A copy of the state on the CPU, as a checkpoint holds it; training does not change it."""

    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    """`<parameter>/<key>`, such as `encoder.conv1.weight/momentum_buffer`."""
    state: dict[str, Any]
    """JSON: step, bad, seed, fingerprint, and the metrics row whose evaluation is pending, if any."""

    @property
    def step(self) -> int:
        return self.state["step"]


def initial_state(
    config: Config,
    device: torch.device,
    initial: Mapping[str, Tensor] | None = None,
    teacher: Teacher | None = None,
) -> TrainState:
    """Step 0: weights drawn on the CPU from the seed, whatever the device. `initial`: the encoder's, in their place.

    The probe, if there is one, is part of the model's state.
    """
    size = config.augment.size
    model = build_method(config.model, config.method, config.train.seed, size=size, initial=initial, teacher=teacher)
    if config.evaluate.probe:
        classes = config.evaluate.probe_classes
        if classes is None:
            raise BadInput("evaluate.probe_classes is not known: set it to the number of classes")
        model.add_module("probe", Probe(model.encoder, classes, config.train.global_batch))
    model.to(dtype=torch.float64 if config.train.precision == "float64" else torch.float32)
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return TrainState(model, build_optimizer(model, config.optim, config.train.global_batch, model.constant_rate))


def snapshot(state: TrainState, **fields: Any) -> Snapshot:
    """Copies `state` to the CPU; `fields` join its JSON part."""
    model = state.model.state_dict()
    optimizer = {
        f"{name}/{key}": value
        for name, parameter in state.model.named_parameters()
        for key, value in state.optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }
    copies = _on_cpu([*model.values(), *optimizer.values()])
    return Snapshot(
        dict(zip(model, copies, strict=False)),
        dict(zip(optimizer, copies[len(model) :], strict=True)),
        {"step": state.step, "bad": sorted(state.bad_ids), **fields},
    )


def restore(state: TrainState, saved: Snapshot) -> None:
    """Loads a snapshot into `state`, in place."""
    state.model.load_state_dict(saved.model)
    parameters = dict(state.model.named_parameters())
    for name, value in saved.optimizer.items():
        owner, _, key = name.rpartition("/")
        parameter = parameters[owner]
        # AdamW keeps its step count on the CPU, whatever the device.
        restored = value.clone() if value.ndim == 0 else torch.empty_like(parameter).copy_(value)
        state.optimizer.state[parameter][key] = restored
    state.step, state.bad_ids = saved.step, set(saved.state["bad"])


def _on_cpu(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Contiguous copies, as parts of one buffer: from an accelerator it is pinned, and waited for once."""
    starts = [0, *accumulate(-(-tensor.nbytes // ALIGNMENT) * ALIGNMENT for tensor in tensors)]
    on_accelerator = any(tensor.device.type != "cpu" for tensor in tensors)
    buffer = torch.empty(starts[-1], dtype=torch.uint8, pin_memory=on_accelerator)
    copies = []
    for tensor, start in zip(tensors, starts, strict=False):
        copy = buffer[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        copies.append(copy.copy_(tensor.detach(), non_blocking=on_accelerator))
    if on_accelerator:
        torch.accelerator.synchronize()
    return copies
