import pytest
import torch
from torch import nn

from studybook import models


def count(net):
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize(("depth", "millions"), [(20, 0.27), (32, 0.46), (56, 0.85), (110, 1.7)])
def test_resnets_have_the_papers_number_of_parameters(depth, millions):
    # He et al. (2016), Table 6: 0.27 M, 0.46 M, 0.85 M, 1.7 M
    assert count(models.resnet(depth, 16, 3, 10)) / 1e6 == pytest.approx(millions, abs=0.03)


def test_a_resnet_has_as_many_layers_as_it_says():
    layers = [m for m in models.resnet(26, 4, 3, 10).modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(layers) == 26


def test_lenet_has_the_papers_number_of_parameters_but_for_its_dense_third_layer():
    # LeCun et al. (1998): 156, 48,120 and 10,164 in C1, C5 and F6; our C3 is dense (2,416), our pooling has no weights
    assert count(models.lenet(1, 28, 10)) == 156 + 2_416 + 48_120 + 10_164 + 850


@pytest.mark.parametrize("size", [14, 28, 32, 64])
def test_lenet_takes_images_of_its_size(size):
    assert models.lenet(3, size, 7)(torch.zeros(2, 3, size, size)).shape == (2, 7)


def test_without_batch_norm_a_resnet_starts_near_the_identity():
    net = models.resnet(56, 8, 3, 10, batch_norm=False)
    x = torch.randn(4, 8, 16, 16).relu()
    torch.testing.assert_close(net[2](x), x)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in net.modules())


def test_an_mlp_flattens_images():
    assert models.mlp(48, 5, 3)(torch.zeros(2, 3, 4, 4)).shape == (2, 3)


def test_shapes_that_cannot_be_are_refused_in_words():
    with pytest.raises(ValueError, match=r"depth must be 6n\+2 .* got depth=10"):
        models.resnet(10, 16, 3, 10)
    with pytest.raises(ValueError, match="width must be positive, got width=0"):
        models.resnet(8, 0, 3, 10)
    with pytest.raises(ValueError, match="at least 14 pixels, got size=8"):
        models.lenet(1, 8, 10)
    with pytest.raises(ValueError, match="at least an input and an output width"):
        models.mlp(3)
