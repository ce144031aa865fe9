"""BatchNorm against torch's own, on one process, by each of its paths; tests/test_workers.py has several processes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from simclr_ray.model import batchnorm
from simclr_ray.model.batchnorm import BatchNorm, set_update_running


@pytest.fixture(autouse=True, params=[True, False], ids=["fused", "written out"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU takes the arithmetic that is written out; its mathematics are tested here."""
    monkeypatch.setattr(batchnorm, "has_fused_kernels", lambda x: request.param)


def pair(dims: int) -> tuple[BatchNorm, nn.Module]:
    ours = BatchNorm(5).double()
    theirs = (nn.BatchNorm1d if dims == 2 else nn.BatchNorm2d)(5).double()
    with torch.no_grad():
        ours.weight.copy_(torch.linspace(0.5, 2, 5))
        ours.bias.copy_(torch.linspace(-1, 1, 5))
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def images(dims: int) -> Tensor:
    generator = torch.Generator().manual_seed(dims)
    shape = (6, 5) if dims == 2 else (6, 5, 4, 3)
    return torch.randn(shape, generator=generator, dtype=torch.float64) * 3 + 1


@pytest.mark.parametrize("dims", [2, 4])
def test_output_gradients_and_running_statistics_equal_torchs(dims: int) -> None:
    ours, theirs = pair(dims)
    weight = torch.randn(images(dims).shape, dtype=torch.float64)
    results = []
    for module in (ours, theirs):
        x = images(dims).requires_grad_()
        for _ in range(2):
            module.zero_grad()
            x.grad = None
            y = module(x)
            (y * weight).sum().backward()
        results.append((y.detach(), x.grad, module.weight.grad, module.bias.grad))
    torch.testing.assert_close(results[0], results[1], rtol=1e-10, atol=1e-10)
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ours.eval()(images(dims)), theirs.eval()(images(dims)))


def test_the_first_of_two_forwards_leaves_the_running_statistics_alone() -> None:
    module = nn.Sequential(BatchNorm(5))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    set_update_running(module, False)
    module(images(4).float())
    torch.testing.assert_close(dict(module.state_dict()), before)
    set_update_running(module, True)
    module(images(4).float())
    assert module[0].num_batches_tracked == 1


def test_statistics_stay_float32_in_bf16() -> None:
    module = BatchNorm(3)
    x = torch.randn(64, 3, 8, 8) * 0.1 + 5
    y = module(x.bfloat16())
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(module.running_mean, 0.1 * x.bfloat16().float().mean((0, 2, 3)), rtol=1e-5, atol=1e-5)


def test_a_constant_channel_is_finite() -> None:
    x = torch.full((4, 2, 3, 3), 1000.1)
    assert torch.isfinite(BatchNorm(2)(x)).all()


def test_without_beta_there_is_no_bias() -> None:
    module = BatchNorm(3, bias=False)
    assert [name for name, _ in module.named_parameters()] == ["weight"]
    assert module(torch.randn(8, 3)).mean(0).abs().max() < 1e-6
