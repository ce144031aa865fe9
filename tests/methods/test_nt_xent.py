"""NT-Xent against its definition written out, gradients included."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from simclr_ray.methods import simclr as loss_module
from simclr_ray.methods.simclr import nt_xent


def definition(view_a: Tensor, view_b: Tensor, temperature: float) -> Tensor:
    """SimCLR, equation 1 and algorithm 1, term by term: no matrix, no mask."""
    z = torch.cat([view_a, view_b])
    z = z / z.norm(dim=1, keepdim=True)
    n = len(view_a)
    total = z.new_zeros(())
    for i in range(2 * n):
        positive = (i + n) % (2 * n)
        others = torch.stack([torch.exp(z[i] @ z[k] / temperature) for k in range(2 * n) if k != i])
        total = total - torch.log(torch.exp(z[i] @ z[positive] / temperature) / others.sum())
    return total / (2 * n)


def views(n: int, d: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n)
    made = [torch.randn(n, d, generator=generator, dtype=dtype).mul_(3).requires_grad_() for _ in range(2)]
    return made[0], made[1]


@pytest.mark.parametrize("chunk", [1 << 24, 40])
@pytest.mark.parametrize(("n", "temperature"), [(2, 1.0), (7, 0.1), (12, 0.5)])
def test_loss_and_gradients_equal_the_definition(
    n: int, temperature: float, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss_module, "CHUNK_ELEMENTS", chunk)
    a, b = views(n, 5)
    nt_xent(a, b, temperature).backward()
    got = (a.grad, b.grad)
    c, d = views(n, 5)
    expected = definition(c, d, temperature)
    expected.backward()
    torch.testing.assert_close(nt_xent(a, b, temperature), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(got, (c.grad, d.grad), rtol=1e-10, atol=1e-12)


def test_the_upstream_gradient_scales_the_gradient() -> None:
    a, b = views(4, 3)
    (3 * nt_xent(a, b, 0.5)).backward()
    tripled = a.grad
    a.grad = None
    nt_xent(a, b, 0.5).backward()
    torch.testing.assert_close(tripled, 3 * a.grad)


def test_autocast_does_not_lower_its_precision() -> None:
    a, b = views(16, 8, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        inside = nt_xent(a, b, 0.05)
        inside.backward()
    expected = definition(a.double(), b.double(), 0.05)
    assert abs(inside.item() - expected.item()) < 1e-5


def test_memory_stays_below_the_full_similarity_matrix() -> None:
    """At N = 4096 the matrix alone would be 256 MiB; the largest tensor made stays at the chunk."""
    largest = 0

    class Largest(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, Tensor):
                largest = max(largest, out.numel())
            return out

    a, b = views(4096, 8, torch.float32)
    with Largest():
        nt_xent(a, b, 0.1).backward()
    assert largest <= loss_module.CHUNK_ELEMENTS
