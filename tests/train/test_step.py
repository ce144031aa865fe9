"""What a step must not do: forward a pass more than it must, hold two graphs, copy gradients, wait for the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode

from simclr_ray import collective
from simclr_ray.config import METHODS, Config
from simclr_ray.methods.build import draw_method
from simclr_ray.methods.method import Method
from simclr_ray.optim.build import build_optimizer
from simclr_ray.train.state import initial_state
from simclr_ray.train.step import Forward, forward_of, training_step
from small_runs import SMALL_BATCH, TINY, with_method

CPU = torch.device("cpu")
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
ROWS, CROPS = 8, 3
VARIANTS = [*METHODS, "moco_v3", "swav_multi_crop", "swav_queue_multi_crop", "dino_multi_crop"]


def small(variant: str) -> Config:
    return with_method(TINY.with_overrides({"train.global_batch": SMALL_BATCH}), variant)


class Held:
    """A tensor that a graph keeps for its backward; `bytes` of all that are alive, and their peak."""

    bytes = peak = 0

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        Held.bytes += tensor.nbytes
        Held.peak = max(Held.peak, Held.bytes)

    def __del__(self) -> None:
        Held.bytes -= self.tensor.nbytes


@contextmanager
def graphs_measured() -> Iterator[type[Held]]:
    Held.bytes = Held.peak = 0
    with saved_tensors_hooks(Held, lambda held: held.tensor):
        yield Held


def counting(forward: Forward, calls: list[tuple[int, bool, bool]]) -> Forward:
    """`forward`, with images, local, and whether there is a graph, of each call."""

    def counted(pixels: Tensor, *, local: bool = False) -> Tensor:
        calls.append((len(pixels), local, torch.is_grad_enabled()))
        return forward(pixels, local=local)

    return counted


def step(model: Method, forward: Forward, optimizer: torch.optim.Optimizer, variant: str, passes: int) -> None:
    """One of `ROWS` rows in a pass, with local views and labels where the variant has them."""
    rows = passes * ROWS
    views = torch.randint(0, 256, (rows, 2, 8, 8, 3), dtype=torch.uint8)
    local = torch.randint(0, 256, (rows, CROPS, 8, 8, 3), dtype=torch.uint8)
    training_step(
        model,
        forward,
        optimizer,
        views,
        passes=passes,
        rows_per_worker=[ROWS],
        local=local if variant.endswith("_multi_crop") else None,
        labels=torch.randint(0, 10, (rows,)) if variant == "supervised" else None,
    )


def calls_and_graphs(variant: str, passes: int) -> tuple[list[tuple[int, bool, bool]], int]:
    """The calls of a step's forwards, and the most bytes that graphs held at once."""
    state = initial_state(small(variant), CPU)
    calls: list[tuple[int, bool, bool]] = []
    forward = counting(forward_of(state.model, MEAN, STD, "float32", CPU, compiled=False), calls)
    with graphs_measured() as held:
        step(state.model, forward, state.optimizer, variant, passes)
    return calls, held.peak


def test_passes_forward_all_but_the_first_twice_and_hold_one_graph_at_a_time() -> None:
    calls, graphs = calls_and_graphs("simclr", 4)
    pass_ = 2 * ROWS, False
    assert calls == [(*pass_, False)] * 3 + [(*pass_, True)] * 4
    assert graphs < 1.3 * calls_and_graphs("simclr", 1)[1]  # the rest is the graph of the loss


def test_with_local_views_the_first_pass_of_the_others_alone_is_forwarded_once() -> None:
    calls, graphs = calls_and_graphs("swav_multi_crop", 2)
    whole, local = (2 * ROWS, False), (CROPS * ROWS, True)
    assert [call[:2] for call in calls if not call[2]] == [local, whole, local]
    assert [call[:2] for call in calls if call[2]] == [whole, local, whole, local]
    assert graphs < 0.8 * calls_and_graphs("swav_multi_crop", 1)[1]  # which holds both at once


class NoCopies(TorchDispatchMode):
    """Refuses copies between the host and the device: from or to memory that is not pinned they wait."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default):
            source = args[0] if func is torch.ops.aten._to_copy.default else args[1]
            assert source.device == result.device, f"{func} from {source.device} to {result.device}"
        return result


@pytest.mark.parametrize(
    ("variant", "passes", "optimizer"),
    [(variant, 1, "lars") for variant in VARIANTS]
    + [("simclr", 2, "sgd"), ("simclr", 1, "adamw"), ("swav_multi_crop", 2, "lars")],
)
def test_a_plain_step_never_waits_for_the_device(
    variant: str, passes: int, optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the meta device: all operations that a GPU would do, and no value that could be read."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # it knows no such device
    config, meta = small(variant).with_overrides({"optim.optimizer": optimizer}), torch.device("meta")
    with meta:
        model = draw_method(config.model, config.method, 8)
        forward = forward_of(model, MEAN, STD, "float32", meta, compiled=False)
        state = build_optimizer(model, config.optim, 32, model.constant_rate)
        with NoCopies():
            step(model, forward, state, variant, passes)


def test_gradients_are_summed_as_they_lie_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """channels_last weights too: flattened in torch's order they would be copied twice on either side."""
    images = {"memory_format": torch.channels_last}
    weights = [torch.randn(4, 3, 2, 2).to(**images), torch.randn(5, 4, 1, 1).to(**images), torch.randn(7)]
    sent: list[Tensor] = []

    def doubled(values: Tensor, op: object = None) -> Callable[[], object]:
        sent.append(values.clone())
        return lambda: values.mul_(2)

    monkeypatch.setattr(collective, "alone", lambda: False)
    monkeypatch.setattr(collective, "_all_reduce", doubled)
    gradients = [torch.randn(weight.shape) for weight in weights]
    for weight, gradient in zip(weights, gradients, strict=True):
        weight.grad = torch.empty_like(weight).copy_(gradient)
    in_memory = torch.cat([torch.as_strided(w.grad, (w.numel(),), (1,)) for w in weights if w.grad is not None])
    collective.sum_gradients(weights)
    assert torch.equal(torch.cat(sent), in_memory)
    for weight, gradient in zip(weights, gradients, strict=True):
        assert weight.grad is not None
        assert torch.equal(weight.grad, 2 * gradient)
        assert weight.grad.stride() == weight.stride()
