"""The projection heads of the paper and of the official code."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from simclr_ray.config import BadInput, ModelConfig
from simclr_ray.model.batchnorm import BatchNorm
from simclr_ray.model.heads import dense_layers, leading_layers, predictor, projection_head


def head_of(**settings) -> nn.Sequential:
    return projection_head(ModelConfig(**settings), feature_dim=64)


def dense(head: nn.Module) -> list[tuple[int, int, bool]]:
    layers = [module for module in head.modules() if isinstance(module, nn.Linear)]
    return [(layer.in_features, layer.out_features, layer.bias is not None) for layer in layers]


def test_head_none_is_the_identity():
    h = torch.randn(3, 64)
    assert torch.equal(head_of(head="none")(h), h)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"head": "linear", "head_dim": 16}, [(64, 16, True)]),
        ({"head": "linear", "head_dim": 16, "head_batchnorm": True}, [(64, 16, True)]),
        ({"head_dim": 16}, [(64, 64, True), (64, 16, True)]),
        ({"head_layers": 3, "head_hidden": 32}, [(64, 32, True), (32, 32, True), (32, 128, True)]),
        ({"head_layers": 3, "head_batchnorm": True}, [(64, 64, False), (64, 64, False), (64, 128, False)]),
    ],
)
def test_dense_layers_have_the_given_widths(settings, expected):
    assert dense(head_of(**settings)) == expected


def test_mlp_is_relu_between_dense_layers_and_none_after():
    head, h = dense_layers([5, 7, 6, 4]), torch.randn(8, 5)
    first, second, third = (module for module in head if isinstance(module, nn.Linear))
    torch.testing.assert_close(head(h), third(F.relu(second(F.relu(first(h))))))
    assert (head(h) < 0).any()


def test_leading_layers_end_behind_a_relu():
    head, h = dense_layers([5, 7, 6, 4]), torch.randn(8, 5)
    first, second, _ = (module for module in head if isinstance(module, nn.Linear))
    assert torch.equal(leading_layers(head, 0)(h), h)
    assert torch.equal(leading_layers(head, 1)(h), F.relu(first(h)))
    assert torch.equal(leading_layers(head, 2)(h), F.relu(second(F.relu(first(h)))))
    for short, layers in ((head, 3), (dense_layers([5, 4]), 1), (dense_layers([5]), 1)):
        with pytest.raises(BadInput, match=f"method.from_head {layers}: this projection head has {layers - 1} layers"):
            leading_layers(short, layers)


def test_batchnorm_follows_every_dense_layer_and_the_last_has_no_beta():
    head, h = dense_layers([5, 7, 4], batchnorm=True), torch.randn(64, 5)
    norms = [module for module in head if isinstance(module, BatchNorm)]
    assert [norm.bias is not None for norm in norms] == [True, False]
    first, second = (module.weight for module in head if isinstance(module, nn.Linear))
    hidden = F.relu(F.batch_norm(h @ first.T, None, None, training=True))
    torch.testing.assert_close(
        head(h), F.batch_norm(hidden @ second.T, None, None, training=True), rtol=1e-4, atol=1e-5
    )


def test_a_head_with_gelu_and_its_leading_layers():
    head, h = head_of(head_layers=3, head_hidden=7, head_activation="gelu"), torch.randn(8, 64)
    first, second, third = (module for module in head if isinstance(module, nn.Linear))
    torch.testing.assert_close(head(h), third(F.gelu(second(F.gelu(first(h))))))
    assert torch.equal(leading_layers(head, 1)(h), F.gelu(first(h)))


def test_moco_v3s_predictor_for_vision_transformers_ends_in_a_batchnorm_without_beta():
    assert dense(predictor(6, 9)) == [(6, 9, False), (9, 6, True)]
    ending = predictor(6, 9, last_batchnorm=True)
    assert dense(ending) == [(6, 9, False), (9, 6, False)]
    assert isinstance(ending[-1], BatchNorm)
    assert ending[-1].bias is None
