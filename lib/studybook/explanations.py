"""Attributions: how much each pixel speaks for a class; and tests of whether they are right.

An attribution is a pure function `(model, x, target) -> (N, C, H, W)` of any network, example by example; the model's
mode, parameters and hooks are afterwards what they were. captum is the well-kept library of attributions: `grad_cam`
is captum's, and studies take sampled Shapley values and LIME from it. Ours are the others. `integrated_gradients`
is here because it is faster, on equal terms; `guided_backprop`, `deconvnet`, `deeplift` and `relevance` because
captum knows rectifiers, and layers, only as modules of certain classes (no ReLU6, no `torch.relu`, no sums of
branches) and because relevance needs the rules of deep Taylor decomposition. The tests compare all of them with captum.
"""

import contextlib
import copy
import functools
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from studybook import features
from studybook.stats import correlation

_SMALL = 1e-6  # differences below it count as none: a slope instead of a quotient


class Rule(NamedTuple):
    """How a layer hands relevance to its inputs: its name, and for "z-beta" the smallest and the largest input."""

    name: Literal["epsilon", "z+", "w2", "z-beta"]
    low: float | Float[Tensor, "#N C #H #W"] = 0.0
    high: float | Float[Tensor, "#N C #H #W"] = 1.0


def gradient(
    model: nn.Module, x: Float[Tensor, "N ..."], target: Int[Tensor, " N"], batch: int = 64
) -> Float[Tensor, "N ..."]:
    """Slope of the target's logit at each input, with its sign.

    Reference: Simonyan, Vedaldi, Zisserman (2013), Deep Inside Convolutional Networks.
    """
    return _batched(lambda some, wanted: _slopes(model, some, wanted), model, x, target, batch)


def gradient_input(
    model: nn.Module, x: Float[Tensor, "N ..."], target: Int[Tensor, " N"], batch: int = 64
) -> Float[Tensor, "N ..."]:
    """Slope times input: what a linear model with these slopes and no offset would add up.

    Reference: Shrikumar, Greenside, Shcherbina, Kundaje (2016), Not Just a Black Box.
    """
    return x * gradient(model, x, target, batch)


def integrated_gradients(
    model: nn.Module,
    x: Float[Tensor, "N ..."],
    target: Int[Tensor, " N"],
    baseline: Float[Tensor, "#N ..."] | None = None,
    steps: int = 64,
    rule: Literal["gauss", "right", "middle"] = "gauss",
    batch: int = 16,
) -> Float[Tensor, "N ..."]:
    """Slopes averaged along the straight line from `baseline` (default: zeros) to x, times the difference.

    The sum over inputs nears the difference of the target's logits at both ends as `steps` grow (`completeness`).
    `rule` places the steps: "gauss" (Gauss-Legendre), "right" (the paper's sum) or "middle". Points of all paths go
    through the network together, `batch` at a time (few suit a processor's cache, a graphics card wants hundreds), with
    batch norm folded into convolutions, channels last.

    Reference: Sundararajan, Taly, Yan (2017), Axiomatic Attribution for Deep Networks.
    """
    if steps < 1:
        raise ValueError(f"integrated_gradients needs at least one step, got steps={steps}")
    baseline = _baseline(x, baseline)
    _check(x, target, batch)
    at, weight = (part.to(x.device, x.dtype) for part in _quadrature(steps, rule))
    total = torch.zeros_like(x)
    points = torch.cartesian_prod(torch.arange(len(x)), torch.arange(steps)).to(x.device)
    network = _constant(model, x)
    for some in points.split(batch):
        example, step = some.T
        ends, alpha = baseline[example], at[step].view(-1, *[1] * (x.ndim - 1))
        path = ends + alpha * (x[example] - ends)
        slopes = _slopes(network, _laid_out(path), target[example])
        total.index_add_(0, example, slopes * weight[step].view_as(alpha))
    return total * (x - baseline)


def completeness(
    model: nn.Module,
    x: Float[Tensor, "N ..."],
    target: Int[Tensor, " N"],
    attribution: Float[Tensor, "N ..."],
    baseline: Float[Tensor, "#N ..."] | None = None,
    batch: int = 64,
) -> Float[Tensor, " N"]:
    """Sum of the attributions less the difference of the target's logits between x and `baseline`: zero if complete."""
    if attribution.shape != x.shape:
        raise ValueError(
            f"attribution must have one value for each input, got {tuple(attribution.shape)} for {tuple(x.shape)}"
        )
    ends = _logit(model, x, target, batch) - _logit(model, _baseline(x, baseline), target, batch)
    return attribution.flatten(1).sum(1) - ends


def guided_backprop(
    model: nn.Module, x: Float[Tensor, "N ..."], target: Int[Tensor, " N"], batch: int = 64
) -> Float[Tensor, "N ..."]:
    """Slopes in whose way back every rectifier also drops what is negative.

    Raises ValueError for a network without rectifiers (ReLU or ReLU6, as modules or functions).

    Reference: Springenberg, Dosovitskiy, Brox, Riedmiller (2014), Striving for Simplicity: The All Convolutional Net.
    """
    return _rectified(_Guided, model, x, target, batch)


def deconvnet(
    model: nn.Module, x: Float[Tensor, "N ..."], target: Int[Tensor, " N"], batch: int = 64
) -> Float[Tensor, "N ..."]:
    """The way back through a network whose rectifiers drop what is negative there, whatever they let pass forward.

    Raises ValueError for a network without rectifiers (ReLU or ReLU6, as modules or functions).

    Reference: Zeiler, Fergus (2014), Visualizing and Understanding Convolutional Networks.
    """
    return _rectified(_Deconvolved, model, x, target, batch)


def deeplift(
    model: nn.Module,
    x: Float[Tensor, "N ..."],
    target: Int[Tensor, " N"],
    baseline: Float[Tensor, "#N ..."] | None = None,
    batch: int = 64,
) -> Float[Tensor, "N ..."]:
    """DeepLIFT with the rescale rule: every nonlinearity's slope is its quotient of differences from `baseline`.

    Complete by construction. Raises ValueError for max pooling and for products of activations, which the rule does
    not cover.

    Reference: Shrikumar, Greenside, Kundaje (2017), Learning Important Features Through Propagating Activation
    Differences.
    """
    reference = _baseline(x, baseline)

    def one(some: Tensor, wanted: Tensor, base: Tensor) -> Tensor:
        both = torch.cat([some, base]).requires_grad_()
        with _Rescaled():
            logits = model(both)
        chosen = _chosen(logits[: len(some)], wanted).sum()
        return torch.autograd.grad(chosen, both)[0][: len(some)] * (some - base)

    return _batched(one, model, x, target, batch, reference)


def relevance(
    model: nn.Module,
    x: Float[Tensor, "N ..."],
    target: Int[Tensor, " N"],
    rule: Rule = Rule("epsilon"),  # noqa: B008
    first: Rule | None = None,
    batch: int = 64,
) -> Float[Tensor, "N ..."]:
    """The target's logit handed back layer by layer (layer-wise relevance propagation, deep Taylor decomposition).

    `rule` holds for all layers with weights but the first, which follows `first` (the same, if none is given):
    "epsilon" shares by contributions, offsets included (their share is lost); "z+" by positive contributions alone;
    "w2" by squared weights, for inputs without bounds; "z-beta" for inputs between `low` and `high`. Deep Taylor
    decomposition is `relevance(..., Rule("z+"), first=Rule("z-beta", low, high))`. Nonlinearities hand on what
    they get, mean pooling and sums of branches share by contributions, max pooling gives all to the largest. Batch norm
    is folded into the convolution before it. Raises ValueError for layers without a rule (normalization elsewhere,
    products of activations).

    References: Bach et al. (2015), On Pixel-Wise Explanations for Non-Linear Classifier Decisions by Layer-Wise
    Relevance Propagation; Montavon et al. (2017), Explaining NonLinear Classification Decisions with Deep Taylor
    Decomposition.
    """
    network = _constant(model, x)

    def one(some: Tensor, wanted: Tensor) -> Tensor:
        some = some.clone().requires_grad_()
        with _Propagated(rule, first or rule):
            logits = network(some)
        seed = torch.zeros_like(logits).scatter(1, wanted[:, None], _chosen(logits.detach(), wanted)[:, None])
        return torch.autograd.grad(logits, some, seed)[0]

    return _batched(one, network, x, target, batch)


def grad_cam(
    model: nn.Module,
    x: Float[Tensor, "N C H W"],
    target: Int[Tensor, " N"],
    layer: str,
    positive: bool = True,
    batch: int = 64,
) -> Float[Tensor, "N 1 h w"]:
    """Maps of `layer` (a name in `model.named_modules()`) weighted by their averaged slopes, summed; captum's.

    The map is as coarse as the layer (`resized` brings it to the picture's size). With `positive` what is negative is
    set to zero, as in the paper.

    Reference: Selvaraju et al. (2017), Grad-CAM: Visual Explanations from Deep Networks via Gradient-based
    Localization.
    """
    from captum.attr import LayerGradCam

    modules = dict(model.named_modules())
    if layer not in modules or not layer:
        raise ValueError(f"no layer is called {layer!r}; the last of {len(modules) - 1} are {list(modules)[-4:]}")

    def one(some: Tensor, wanted: Tensor) -> Tensor:
        found = LayerGradCam(model, modules[layer]).attribute(some, wanted, relu_attributions=positive)
        if found.ndim != 4:
            raise ValueError(
                f"layer {layer!r} puts out no maps but {tuple(found.shape)}; Grad-CAM needs a layer of maps"
            )
        return found.detach()

    return _batched(one, model, x, target, batch)


def resized(maps: Float[Tensor, "N C h w"], size: Sequence[int]) -> Float[Tensor, "N C H W"]:
    """Maps brought to `size` pixels (height, width) by bilinear interpolation."""
    return F.interpolate(maps, tuple(size), mode="bilinear", align_corners=False)


def removed(
    x: Float[Tensor, "N C H W"],
    attribution: Float[Tensor, "N _ H W"],
    shares: Float[Tensor, " S"],
    fill: Float[Tensor, "#N C #H #W"] | None = None,
) -> Float[Tensor, "S N C H W"]:
    """x without the share of its pixels with the largest attributions, for each share; `fill` (zeros) stands there.

    A pixel's attribution is the sum over its channels: pass `attribution.abs()` where the sign is not meant. Equal
    ones (Grad-CAM's zeros) go in the order of rows.
    """
    _check_pixels(x, attribution)
    if len(shares) == 0 or float(shares.amin()) < 0 or float(shares.amax()) > 1:
        raise ValueError(f"shares must lie between 0 and 1, got {shares.tolist()}")
    place = attribution.sum(1).flatten(1).argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    gone = place.view(-1, 1, *x.shape[2:]) < (shares * place.shape[1]).round().view(-1, 1, 1, 1, 1).to(x.device)
    return torch.where(gone, _fill(x, fill), x)


def deletion(
    model: nn.Module,
    x: Float[Tensor, "N C H W"],
    target: Int[Tensor, " N"],
    attribution: Float[Tensor, "N _ H W"],
    shares: Float[Tensor, " S"],
    fill: Float[Tensor, "#N C #H #W"] | None = None,
    score: Literal["probability", "logit"] = "probability",
    batch: int = 64,
) -> Float[Tensor, "N S"]:
    """The target's score after the share of pixels with the largest attributions gave way to `fill` (zeros).

    The faster it falls, the better the attribution found what the network needs. Its mean is the area under the curve.

    Reference: Petsiuk, Das, Saenko (2018), RISE: Randomized Input Sampling for Explanation of Black-box Models.
    """
    parts = [removed(x, attribution, share[None], fill)[0] for share in shares]
    return torch.stack([_score(model, part, target, score, batch) for part in parts], 1)


def insertion(
    model: nn.Module,
    x: Float[Tensor, "N C H W"],
    target: Int[Tensor, " N"],
    attribution: Float[Tensor, "N _ H W"],
    shares: Float[Tensor, " S"],
    fill: Float[Tensor, "#N C #H #W"] | None = None,
    score: Literal["probability", "logit"] = "probability",
    batch: int = 64,
) -> Float[Tensor, "N S"]:
    """The target's score where all but the share of pixels with the largest attributions is `fill` (zeros).

    Reference: Petsiuk, Das, Saenko (2018), RISE: Randomized Input Sampling for Explanation of Black-box Models.
    """
    _check_pixels(x, attribution)
    empty = _fill(x, fill).expand_as(x)
    parts = [removed(empty, attribution, share[None], x)[0] for share in shares]
    return torch.stack([_score(model, part, target, score, batch) for part in parts], 1)


def remove_and_retrain(
    retrain: Callable[[Tensor, Tensor], Float[Tensor, "*E"]],
    train: tuple[Float[Tensor, "N C H W"], Float[Tensor, "N _ H W"]],
    test: tuple[Float[Tensor, "M C H W"], Float[Tensor, "M _ H W"]],
    shares: Float[Tensor, " S"],
    fill: Float[Tensor, "#N C #H #W"] | None = None,
) -> Float[Tensor, "S *E"]:
    """What new networks score that never saw the pixels with the largest attributions, for each share removed.

    `train` and `test` are pairs of pictures and their attributions; `retrain(train, test)` trains on the pictures
    that are left and gives the scores of its members. A random attribution is the control.

    Reference: Hooker, Erhan, Kindermans, Kim (2019), A Benchmark for Interpretability Methods in Deep Neural Networks.
    """
    parts = (tuple(removed(x, found, share[None], fill)[0] for x, found in (train, test)) for share in shares)
    return torch.stack([retrain(*left) for left in parts])


def randomized(model: nn.Module, seed: int, at: Sequence[str] | None = None) -> Iterator[tuple[str, nn.Module]]:
    """Copies of `model` whose layers have lost what they learned, from the last one to the first, one more each time.

    Yields the name of the layer that was added, and the copy; with `at` only at these layers (those between are lost
    too), in their own order. A layer loses what it learned when the entries of each of its parameters change places:
    so the size of activations stays what it was, which new initial weights would not keep in a network with stored
    statistics of batch norm. Attributions that stay as they were do not depend on what was learned. Raises ValueError
    for a layer that does not exist or has no parameters.

    Reference: Adebayo et al. (2018), Sanity Checks for Saliency Maps, the cascading randomization.
    """
    generator = torch.Generator().manual_seed(seed)
    network = copy.deepcopy(model)
    layers = [(name, part) for name, part in network.named_modules() if list(part.parameters(recurse=False))]
    if missing := sorted(set(at or ()) - {name for name, _ in layers}):
        raise ValueError(f"no layer with parameters is called {', '.join(missing)}; the last is {layers[-1][0]}")
    for name, layer in reversed(layers):
        with torch.no_grad():
            for values in layer.parameters(recurse=False):
                order = torch.randperm(values.numel(), generator=generator).to(values.device)
                values.copy_(values.flatten()[order].view_as(values))
        if at is None or name in at:
            yield name, copy.deepcopy(network)


def similarity(a: Float[Tensor, "N ..."], b: Float[Tensor, "N ..."]) -> Float[Tensor, " N"]:
    """Spearman's rank correlation of two attributions, example by example; NaN where one of them is constant."""
    if a.shape != b.shape:
        raise ValueError(f"a and b must have the same shape, got {tuple(a.shape)} and {tuple(b.shape)}")
    from scipy.stats import rankdata

    return correlation(*(torch.from_numpy(rankdata(part.flatten(1).cpu().numpy(), axis=1)) for part in (a, b)))


def segments(pixels: UInt8[Tensor, "C H W"], count: int) -> Int[Tensor, "H W"]:
    """Superpixels of a picture, numbered from 0 without gaps: as many as SLIC makes of it, but at most `count`.

    SLIC (of scikit-image, compactness 10) takes the wanted number as a hint and usually makes fewer; so it is asked
    for more and more, up to twice `count`, and the largest result that is not too large is taken. Raises ValueError
    for a count below 2.

    Reference: Achanta, Shaji, Smith, Lucchi, Fua, Süsstrunk (2012), SLIC Superpixels.
    """
    if count < 2:
        raise ValueError(f"segments needs a count of at least 2, got {count}")
    from skimage.segmentation import slic

    picture = pixels.expand(3, -1, -1).permute(1, 2, 0).numpy() / 255
    best = torch.zeros(pixels.shape[1:], dtype=torch.long)
    for asked in range(2 if count < 16 else count // 2, 2 * count + 1, max(1, count // 20)):
        found = torch.from_numpy(slic(picture, n_segments=asked, compactness=10, sigma=1, start_label=0))
        found = found.unique(return_inverse=True)[1]
        if best.max() < found.max() < count:
            best = found
    return best


class _Guided(torch.autograd.Function):
    """A rectifier whose way back also drops what is negative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, low: float, high: float) -> Tensor:
        ctx.save_for_backward((x > low) & (x < high))
        return x.clamp(low, high)

    @staticmethod
    def backward(ctx: Any, slopes: Tensor) -> tuple[Tensor, None, None]:
        return slopes.clamp(min=0) * ctx.saved_tensors[0], None, None


class _Deconvolved(torch.autograd.Function):
    """A rectifier whose way back is itself a rectifier."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, low: float, high: float) -> Tensor:
        return x.clamp(low, high)

    @staticmethod
    def backward(ctx: Any, slopes: Tensor) -> tuple[Tensor, None, None]:
        return slopes.clamp(min=0), None, None


class _Quotient(torch.autograd.Function):
    """A nonlinearity of inputs followed by as many baselines, whose slope is the quotient of their differences."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, curve: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.curve = curve
        ctx.save_for_backward(x)
        return curve(x)

    @staticmethod
    def backward(ctx: Any, slopes: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        with torch.enable_grad():
            inner = x.detach().requires_grad_()
            outer = ctx.curve(inner)
            (own,) = torch.autograd.grad(outer.sum(), inner)
        here, there = inner.detach().chunk(2)
        risen = outer.detach().chunk(2)
        run = here - there
        quotient = torch.where(
            run.abs() > _SMALL, (risen[0] - risen[1]) / torch.where(run == 0, 1, run), own[: len(run)]
        )
        return slopes * torch.cat([quotient, quotient]), None


class _Handed(torch.autograd.Function):
    """A map whose way back hands relevance to its inputs: by shares in a sum of linear terms (input, map), if any."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Callable[[Tensor], Tensor], terms: Callable | None, lossy: bool) -> Tensor:
        ctx.layer, ctx.terms, ctx.lossy = layer, terms, lossy
        ctx.save_for_backward(x)
        return layer(x)

    @staticmethod
    def backward(ctx: Any, relevance: Tensor) -> tuple[Tensor, None, None, None]:
        (x,) = ctx.saved_tensors
        if ctx.terms is None:
            return relevance.view_as(x), None, None, None
        inputs, maps = zip(*ctx.terms(x), strict=True)
        inputs = [part.detach().requires_grad_() for part in inputs]
        with torch.enable_grad():
            total = sum(linear(part) for part, linear in zip(inputs, maps, strict=True))
        whole = ctx.layer(x) if ctx.lossy else total.detach()
        slopes = torch.autograd.grad(total, inputs, _divided(relevance, whole))
        return sum(part.detach() * slope for part, slope in zip(inputs, slopes, strict=True)), None, None, None


class _Split(torch.autograd.Function):
    """A sum of two branches, each of which gets relevance by its contribution."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return a + b

    @staticmethod
    def backward(ctx: Any, relevance: Tensor) -> tuple[Tensor, Tensor]:
        a, b = ctx.saved_tensors
        share = _divided(relevance, a + b)
        return a * share, b * share


class _Rewired(TorchFunctionMode):
    """Watches every operation of a forward pass; `change` gives a result in its place, or None."""

    def change(self, function: Any, args: tuple, options: dict) -> Tensor | None:
        raise NotImplementedError

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        options = kwargs or {}
        changed = self.change(func, args, options)
        return func(*args, **options) if changed is None else changed


class _Rectified(_Rewired):
    """Every rectifier by `way`."""

    def __init__(self, way: type[torch.autograd.Function]) -> None:
        super().__init__()
        self.way, self.met = way, 0

    def change(self, function: Any, args: tuple, options: dict) -> Tensor | None:
        bounds = _bounds(function, args, options)
        if bounds is None:
            return None
        self.met += 1
        return self.way.apply(args[0], *bounds)


class _Rescaled(_Rewired):
    """Every nonlinearity by its quotient of differences."""

    def change(self, function: Any, args: tuple, options: dict) -> Tensor | None:
        _refuse(function, args, "DeepLIFT's rescale rule", maximum=True)
        curve = _nonlinearity(function, args, options)
        return None if curve is None else _Quotient.apply(args[0], curve)


class _Propagated(_Rewired):
    """Every operation by its rule for relevance."""

    def __init__(self, rule: Rule, first: Rule) -> None:
        super().__init__()
        self.rules = {True: first, False: rule}
        self.first = True

    def change(self, function: Any, args: tuple, options: dict) -> Tensor | None:
        _refuse(function, args, "relevance")
        curve = _nonlinearity(function, args, options)
        if curve is not None:
            return _Handed.apply(args[0], curve, None, False)
        if function in (F.linear, F.conv2d):
            return self.linear(function, *args, **options)
        if function in _pools():
            pool = _with(function, args, options)
            return _Handed.apply(args[0], pool, lambda x: [(x, pool)], False)
        if function in _sums() and len(args) == 2 and not options and _moving(args) == 2:
            return _Split.apply(*torch.broadcast_tensors(*args))
        if function in _products() and _moving(args) == 1 and isinstance(args[0], Tensor) and args[0].requires_grad:
            return _Handed.apply(args[0], _with(function, args, options), None, False)
        return None

    def linear(
        self, function: Any, x: Tensor, w: Tensor, bias: Tensor | None = None, *rest: Any, **more: Any
    ) -> Tensor:
        rule = self.rules[self.first]
        self.first = False

        def by(weight: Tensor) -> Callable[[Tensor], Tensor]:
            return lambda part: function(part, weight, None, *rest, **more)

        up, down = by(w.clamp(min=0)), by(w.clamp(max=0))

        def terms(x: Tensor) -> list[tuple[Tensor, Callable[[Tensor], Tensor]]]:
            if rule.name == "epsilon":
                return [(x, by(w))]
            if rule.name == "w2":
                return [(torch.ones_like(x), by(w**2))]
            if rule.name == "z+":
                return [(x.clamp(min=0), up), (x.clamp(max=0), down)]
            low, high = (torch.as_tensor(end, dtype=x.dtype, device=x.device).expand_as(x) for end in rule[1:])
            return [(x, by(w)), (-low, up), (-high, down)]

        whole = lambda part: function(part, w, bias, *rest, **more)  # noqa: E731
        return _Handed.apply(x, whole, terms, rule.name == "epsilon")


def _bounds(function: Any, args: tuple, options: dict) -> tuple[float, float] | None:
    """Where a rectifier stops, if `function` is one."""
    if function is F.hardtanh:
        ends = dict(zip(("min_val", "max_val"), args[1:3], strict=False)) | options
        return ends.get("min_val", -1.0), ends.get("max_val", 1.0)
    return _rectifiers().get(function)


@functools.cache
def _rectifiers() -> dict[Any, tuple[float, float]]:
    """Where rectifiers stop; tables of functions stand in functions, since they cannot be part of a sweep's key."""
    named = (F.relu, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_)
    return {function: (0.0, torch.inf) for function in named} | {F.relu6: (0.0, 6.0)}


def _nonlinearity(function: Any, args: tuple, options: dict) -> Callable[[Tensor], Tensor] | None:
    """What `function` does to its first argument, if it is a nonlinearity that takes its inputs one by one."""
    if (bounds := _bounds(function, args, options)) is not None:
        return lambda x: x.clamp(*bounds)
    if (curve := _curves().get(function)) is not None:
        return _with(curve, args, {name: value for name, value in options.items() if name != "inplace"})
    return None


@functools.cache
def _curves() -> dict[Any, Any]:
    """Smooth nonlinearities, by every name that they are called by."""
    named = (F.elu, F.leaky_relu, F.silu, F.gelu, F.softplus, F.tanh, torch.tanh, torch.sigmoid, F.sigmoid)
    return {function: function for function in named} | {Tensor.tanh: torch.tanh, Tensor.sigmoid: torch.sigmoid}


@functools.cache
def _pools() -> tuple:
    return F.avg_pool2d, F.adaptive_avg_pool2d, Tensor.mean, torch.mean


@functools.cache
def _sums() -> tuple:
    return torch.add, Tensor.add, Tensor.add_, Tensor.__add__, Tensor.__iadd__, Tensor.__radd__, operator.add


@functools.cache
def _products() -> tuple:
    names = torch.mul, Tensor.mul, Tensor.mul_, Tensor.__mul__, Tensor.__imul__
    return *names, torch.matmul, Tensor.matmul


def _with(function: Any, args: tuple, options: dict) -> Callable[[Tensor], Tensor]:
    return lambda x: function(x, *args[1:], **options)


def _moving(args: tuple) -> int:
    """How many arguments depend on the network's input."""
    return sum(isinstance(part, Tensor) and part.requires_grad for part in args)


def _refuse(function: Any, args: tuple, rule: str, maximum: bool = False) -> None:
    name = getattr(function, "__name__", "")
    norm = name in ("batch_norm", "group_norm", "layer_norm", "instance_norm") and rule == "relevance"
    product = function in _products() and _moving(args) == 2
    if norm or product or "softmax" in name or maximum and "max_pool" in name:
        raise ValueError(
            f"{rule} has no rule for {name.strip('_')}; the rules cover convolutions (with batch norm right behind), "
            f"linear layers, nonlinearities, mean pooling{'' if maximum else ', max pooling'} and sums of branches"
        )


def _divided(a: Tensor, b: Tensor) -> Tensor:
    """a / b, and nothing where there is nothing to divide by."""
    return torch.where(b == 0, 0, a / torch.where(b == 0, 1, b))


def _constant(model: nn.Module, x: Tensor) -> nn.Module:
    """A copy in evaluation mode whose weights get no slopes, batch norm folded into convolutions, channels last."""
    network = copy.deepcopy(model).eval().requires_grad_(False)
    if x.ndim != 4:
        return network
    network = features._folded(network, x[:2])
    for name, part in list(network.named_modules()):
        if isinstance(part, nn.BatchNorm2d) and part.eps == 0:  # folded: nothing is left of it but timm's activation
            parent, _, last = name.rpartition(".")
            setattr(network.get_submodule(parent), last, getattr(part, "act", nn.Identity()))
    return network.to(memory_format=torch.channels_last)


def _laid_out(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x


@contextlib.contextmanager
def _evaluated(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode, afterwards in the modes it was in."""
    training = {module: module.training for module in model.modules()}
    try:
        model.eval()
        yield
    finally:
        for module, mode in training.items():
            module.training = mode


def _batched(
    one: Callable[..., Tensor], model: nn.Module, x: Tensor, target: Tensor, batch: int, *more: Tensor
) -> Tensor:
    """`one` of each batch of examples, in evaluation mode."""
    _check(x, target, batch)
    with _evaluated(model), torch.enable_grad():
        parts = zip(*(whole.detach().split(batch) for whole in (x, target, *more)), strict=True)
        return torch.cat([one(*some).detach() for some in parts])


def _slopes(model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        return torch.autograd.grad(_chosen(model(x), target).sum(), x)[0]


def _rectified(way: type[torch.autograd.Function], model: nn.Module, x: Tensor, target: Tensor, batch: int) -> Tensor:
    def one(some: Tensor, wanted: Tensor) -> Tensor:
        some = some.clone().requires_grad_()
        with _Rectified(way) as watched:
            logits = model(some)
        if not watched.met:
            raise ValueError("guided_backprop and deconvnet need a network with rectifiers (ReLU or ReLU6), found none")
        return torch.autograd.grad(_chosen(logits, wanted).sum(), some)[0]

    return _batched(one, model, x, target, batch)


def _chosen(logits: Tensor, target: Tensor) -> Tensor:
    """The target's logits (N,)."""
    if logits.ndim != 2 or not 0 <= int(target.min()) <= int(target.max()) < logits.shape[1]:
        raise ValueError(
            f"target must be classes of a network that puts out (N, C), got {int(target.min())} to "
            f"{int(target.max())} for {tuple(logits.shape)}"
        )
    return logits.gather(1, target[:, None])[:, 0]


def _logit(model: nn.Module, x: Tensor, target: Tensor, batch: int) -> Tensor:
    with torch.no_grad():
        return _batched(lambda some, wanted: _chosen(model(some), wanted), model, x, target, batch)


def _score(model: nn.Module, x: Tensor, target: Tensor, score: str, batch: int) -> Tensor:
    if score not in ("probability", "logit"):
        raise ValueError(f'score must be "probability" or "logit", got {score!r}')

    def one(some: Tensor, wanted: Tensor) -> Tensor:
        with torch.no_grad():
            logits = model(some)
            return _chosen(logits.softmax(1) if score == "probability" else logits, wanted)

    return _batched(one, model, x, target, batch)


def _quadrature(steps: int, rule: str) -> tuple[Tensor, Tensor]:
    """Where the steps of a path stand between 0 and 1, and their weights."""
    if rule == "gauss":
        import numpy as np

        at, weight = (torch.from_numpy(part) for part in np.polynomial.legendre.leggauss(steps))
        return (at + 1) / 2, weight / 2
    if rule not in ("right", "middle"):
        raise ValueError(f'rule must be "gauss", "right" or "middle", got {rule!r}')
    at = (torch.arange(steps, dtype=torch.float64) + (1.0 if rule == "right" else 0.5)) / steps
    return at, torch.full((steps,), 1 / steps, dtype=torch.float64)


def _check(x: Tensor, target: Tensor, batch: int) -> None:
    if len(x) == 0 or batch < 1 or target.shape != (len(x),):
        raise ValueError(
            f"an attribution needs at least one example, a target for each and a batch of one, got x {tuple(x.shape)}, "
            f"target {tuple(target.shape)}, batch={batch}"
        )
    if not x.isfinite().all():
        raise ValueError(f"x must hold finite numbers, but {int((~x.isfinite()).sum())} are not")


def _baseline(x: Tensor, baseline: Tensor | None) -> Tensor:
    return _like(x, baseline, "baseline")


def _fill(x: Tensor, fill: Tensor | None) -> Tensor:
    return _like(x, fill, "fill")


def _like(x: Tensor, part: Tensor | None, name: str) -> Tensor:
    if part is None:
        return torch.zeros_like(x)
    try:
        return part.to(x).expand_as(x)
    except RuntimeError:
        raise ValueError(f"{name} must fit x {tuple(x.shape)}, got {tuple(part.shape)}") from None


def _check_pixels(x: Tensor, attribution: Tensor) -> None:
    if attribution.ndim != 4 or attribution.shape[0] != len(x) or attribution.shape[2:] != x.shape[2:]:
        raise ValueError(
            f"attribution must have a value for each pixel of x {tuple(x.shape)}, got {tuple(attribution.shape)}"
        )
    if attribution.isnan().any():
        raise ValueError("attribution must not hold NaN: pixels could not be put in order")
