"""The networks for pictures."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from test_models import make_spec
from torch import nn

from {{ cookiecutter.package_name }}.engine.errors import UserError
from {{ cookiecutter.package_name }}.models.cnn import CNN
from {{ cookiecutter.package_name }}.models.mlp import MLP


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 8), (3, 33, 20), (1, 4, 4)])
def test_networks_are_sized_by_the_spec(shape: tuple[int, ...]) -> None:
    spec = make_spec(shape, num_labels=5)
    batch = torch.zeros(2, *shape)
    assert CNN(spec, widths=[8, 8, 8], num_groups=4, dropout=0.1)(batch).shape == (2, 5)
    assert MLP(spec, widths=[8], dropout=0.1)(batch).shape == (2, 5)


def test_cnn_output_does_not_depend_on_the_batch() -> None:
    cnn = CNN(make_spec(), widths=[8, 16], num_groups=4, dropout=0.0).train().double()
    batch = torch.rand(6, 1, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(cnn(batch)[:2], cnn(batch[:2]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("make", [partial(CNN, widths=[8, 8, 8], num_groups=4), partial(MLP, widths=[8, 8])])
def test_activation_checkpointing_changes_neither_gradients_nor_names(make: Callable[..., nn.Module]) -> None:
    """Dropout included, whose mask is drawn again."""
    found = {}
    for num_segments in (0, 3):
        torch.manual_seed(3)
        net = make(make_spec(), dropout=0.5, checkpoint_segments=num_segments)
        net(torch.randn(6, 1, 8, 8)).square().sum().backward()
        found[num_segments] = {name: weight.grad for name, weight in net.named_parameters()}
    assert list(found[3]) == list(found[0])
    assert all(torch.equal(found[3][name], found[0][name]) for name in found[0])
    with pytest.raises(UserError, match=r"model.net.checkpoint_segments=99 is out of range: give 0"):
        make(make_spec(), dropout=0.0, checkpoint_segments=99)


def test_activation_checkpointing_recomputes_layers() -> None:
    net = MLP(make_spec(), widths=[8, 8], dropout=0.0, checkpoint_segments=2)
    calls: list[int] = []
    net.layers[1].register_forward_hook(lambda *_: calls.append(1))
    net(torch.randn(6, 1, 8, 8)).sum().backward()
    assert len(calls) == 2
    net.eval()(torch.randn(6, 1, 8, 8))
    assert len(calls) == 3, "evaluation does not recompute layers"
