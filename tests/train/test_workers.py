"""N workers equal one: loss, BatchNorm, and every gradient of a whole training step, in float64.

3 workers do not divide the batch of 16 slices, and with pass_size = B / 4 each pass has 4 slices for 3.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from gloo import run_workers
from simclr_ray import collective
from simclr_ray.config import Config
from simclr_ray.data.order import Order
from simclr_ray.methods.simclr import nt_xent
from simclr_ray.model import batchnorm
from simclr_ray.model.batchnorm import BatchNorm
from simclr_ray.train.batch import channel_scale, normalise
from simclr_ray.train.compiler import set_up_compiler
from simclr_ray.train.state import initial_state
from simclr_ray.train.step import forward_of, training_step

ROWS, SLICE_ROWS, BATCH = 64, 4, 64
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
CONFIG = Config().with_overrides(
    {
        "model.arch": "resnet18",
        "model.width": 0.125,
        "model.stem": "cifar",
        "model.head_batchnorm": True,
        "model.head_dim": 16,
        "method.temperature": 0.2,
        "train.precision": "float64",
        "train.global_batch": BATCH,
        "optim.optimizer": "sgd",
        "optim.lr_per_256": 0.1,
    }
)


def pixels() -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randint(0, 256, (ROWS, 2, 8, 8, 3), generator=generator, dtype=torch.uint8)


def share(pass_size: int) -> tuple[torch.Tensor, list[int]]:
    """This worker's rows of the global batch, and the rows of a pass on every worker."""
    order = Order(seed=1, rows=ROWS, slice_rows=SLICE_ROWS, global_batch=BATCH, pass_size=pass_size)
    positions = order.worker_positions(0, 1, collective.rank(), collective.size())
    slices = [order.slice_at(position)[1] for position in positions]
    rows = torch.cat([torch.arange(g * SLICE_ROWS, (g + 1) * SLICE_ROWS) for g in slices])
    return pixels()[rows], order.rows_per_pass(collective.size())


def whole_step(pass_size: int) -> dict[str, Any]:
    """Two steps: loss, summed gradients, weights and running statistics afterwards."""
    state = initial_state(CONFIG, torch.device("cpu"))
    forward = forward_of(state.model, MEAN, STD, "float64", torch.device("cpu"), compiled=False)
    views, rows = share(pass_size)
    losses = []
    for _ in range(2):
        result = training_step(
            state.model, forward, state.optimizer, views, passes=BATCH // pass_size, rows_per_worker=rows
        )
        losses.append(collective.sum_over_workers(result.loss.clone()))
    gradients = {f"gradient {name}": p.grad.clone() for name, p in state.model.named_parameters()}
    return {"losses": torch.stack(losses), **gradients, **state.model.state_dict()}


def batchnorm_step() -> dict[str, torch.Tensor]:
    """Output and gradients of one BatchNorm over all workers' rows; the loss weights every element differently."""
    views, _ = share(BATCH)
    x = normalise(views[:, 0], *channel_scale(MEAN, STD, torch.float64, views.device)).contiguous().requires_grad_()
    module = BatchNorm(3).double()
    y = module(x)
    (y.pow(3) * x.detach()).sum().backward()
    weights = collective.sum_over_workers(torch.stack([module.weight.grad, module.bias.grad]))
    rows = collective.gather_counts(len(x))
    # The order of rows depends on the number of workers: sorted, they can be compared.
    gathered = [collective.gather_rows(t.detach(), rows).flatten(1).sum(1).sort().values for t in (y, x.grad)]
    return {"weights": weights, "y": gathered[0], "dx": gathered[1], **module.state_dict()}


def loss_step() -> dict[str, torch.Tensor]:
    views, rows = share(BATCH)
    flat = views.flatten(2).double()[..., :7] / 100 - 1
    a, b = flat[:, 0].clone().requires_grad_(), flat[:, 1].clone().requires_grad_()
    loss = nt_xent(a, b, 0.3, rows_per_worker=rows)
    loss.backward()
    gradients = collective.gather_rows(torch.cat([a.grad, b.grad], dim=1), rows)
    return {"loss": collective.sum_over_workers(loss.detach().clone()), "gradients": gradients.sum(1).sort().values}


def everything(fused: bool = True) -> list[dict[str, torch.Tensor]]:
    """`fused`: whether BatchNorm takes the path of a CPU, or that of a GPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batchnorm, "has_fused_kernels", lambda x: fused)
        return [whole_step(BATCH), whole_step(BATCH // 4), batchnorm_step(), loss_step()]


@pytest.fixture(scope="module")
def alone() -> list[dict[str, torch.Tensor]]:
    return everything()


@pytest.mark.parametrize(("workers", "fused"), [(1, False), (2, True), (2, False), (3, True), (3, False)])
def test_workers_equal_one_process(workers: int, fused: bool, alone: list[dict[str, torch.Tensor]]) -> None:
    for results in run_workers(workers, everything, fused, group="ours" if fused else "torch"):
        for got, expected in zip(results, alone, strict=True):
            assert got.keys() == expected.keys()
            for name in expected:
                torch.testing.assert_close(
                    got[name], expected[name], rtol=1e-9, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}"
                )


def test_passes_equal_autograd_through_the_whole_batch(alone: list[dict[str, torch.Tensor]]) -> None:
    """pass_size = B / 4 against one graph that holds all four passes: the two forwards save memory alone."""
    state = initial_state(CONFIG, torch.device("cpu"))
    forward = forward_of(state.model, MEAN, STD, "float64", torch.device("cpu"), compiled=False)
    views, _ = share(BATCH // 4)
    for _ in range(2):
        state.optimizer.zero_grad()
        pairs = [forward(part.transpose(0, 1).flatten(0, 1)).chunk(2) for part in views.chunk(4)]
        loss = nt_xent(torch.cat([a for a, _ in pairs]), torch.cat([b for _, b in pairs]), 0.2)
        loss.backward()
        state.optimizer.step()
    torch.testing.assert_close(alone[1]["losses"][1], loss.detach(), rtol=1e-11, atol=1e-11)
    for name, parameter in state.model.named_parameters():
        torch.testing.assert_close(alone[1][f"gradient {name}"], parameter.grad, rtol=1e-9, atol=1e-11)
    for name, value in state.model.state_dict().items():
        torch.testing.assert_close(alone[1][name], value, rtol=1e-9, atol=1e-11)


def test_unsynchronised_statistics_would_be_noticed(alone: list[dict[str, torch.Tensor]]) -> None:
    """B / 4 is other mathematics than B: the comparison above can tell BatchNorm groups apart."""
    assert (alone[0]["losses"] - alone[1]["losses"]).abs().max() > 1e-4


SUMS = ("_c10d_functional::all_reduce", "_c10d_functional::all_reduce_")
"""Inside a graph, over torch's group."""


def compiled_gradients(backend: str, fused: bool) -> tuple[torch.Tensor, torch.Tensor, list[list[int]]]:
    """The first gradient with and without the compiler, and the shapes of the sums that a compiled step exchanges in
    their order; `fullgraph` makes a graph break an error."""
    found = []
    for compiled in (False, True):
        state = initial_state(CONFIG, torch.device("cpu"))
        views, rows = share(BATCH)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "compile", partial(torch.compile, backend=backend))
            patch.setattr(batchnorm, "has_fused_kernels", lambda x: fused)
            forward = forward_of(state.model, MEAN, STD, "float64", torch.device("cpu"), compiled=compiled)
            training_step(state.model, forward, state.optimizer, views, passes=1, rows_per_worker=rows)
            found.append(state.model.encoder.conv1.weight.grad.clone())
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as seen:
                training_step(state.model, forward, state.optimizer, views, passes=1, rows_per_worker=rows)
    events = sorted(seen.events(), key=lambda event: event.time_range.start)
    return found[0], found[1], [event.input_shapes[0] for event in events if event.name in SUMS]


def compiled_shapes() -> list[tuple[int, ...]]:
    """Shapes of the projections of networks with other heads, one after the other; two passes need two graphs each."""
    views, rows = share(BATCH // 4)
    found = []
    for dim in range(4, 9):
        state = initial_state(CONFIG.with_overrides({"model.head_dim": dim}), torch.device("cpu"))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
            forward = forward_of(state.model, MEAN, STD, "float64", torch.device("cpu"), compiled=True)
        step = training_step(state.model, forward, state.optimizer, views, passes=4, rows_per_worker=rows)
        found.append(tuple(step.outputs.shape))
    return found


def test_one_process_compiles_the_networks_of_many_trials() -> None:
    """The compiler counts graphs over all of them, and would fail after eight."""
    assert run_workers(1, compiled_shapes) == [[(2 * BATCH, dim) for dim in range(4, 9)]]


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_encoder_and_synchronised_batchnorm_compile_without_a_graph_break(backend: str, fused: bool) -> None:
    """On three workers, of which one has more rows, and so a graph of other shapes: if it exchanged its sums in another
    order than the others, NCCL would wait for ever."""
    results = run_workers(3, compiled_gradients, backend, fused, group="ours" if fused else "torch")
    for plain, compiled, _ in results:
        torch.testing.assert_close(plain, compiled, rtol=1e-9, atol=1e-9)
    exchanged = [sizes for _, _, sizes in results]
    assert exchanged[0] == exchanged[1] == exchanged[2]
    assert fused or len(exchanged[0]) > 2 * 20  # forward and backward of each BatchNorm


def compiled_again(folder: Path) -> list[int]:
    """Graphs found in the compiler's cache by two compilations of a BatchNorm, as of a group that starts again."""
    found = []
    set_up_compiler(2.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(folder / str(collective.rank())))
        patch.setattr(batchnorm, "has_fused_kernels", lambda x: False)
        for _ in range(2):
            torch._dynamo.reset()
            counters.clear()
            x = torch.ones(4 + collective.rank(), 3, requires_grad=True)
            torch.compile(BatchNorm(3), fullgraph=True, dynamic=False)(x).square().sum().backward()
            found.append(counters["aot_autograd"]["autograd_cache_hit"])
    return found


@pytest.mark.slow  # it compiles C++
def test_a_group_of_the_same_size_does_not_compile_again(tmp_path: Path) -> None:
    assert run_workers(2, compiled_again, tmp_path, group="torch") == [[0, 1], [0, 1]]
