"""Training many networks of one shape at once: members are an axis, and none knows its companions.

Members whose layers allow it are stacked and trained in one vectorized pass. Networks with convolutions run one
after another, since stacked convolutions are slower; networks with batch norm or dropout must, since those keep
state or draw random numbers. Both ways give a member the same initial weights, batches and updates, alone or in
company, up to float rounding.
"""

import copy
import os
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

Optimizer = Callable[..., torch.optim.Optimizer]
Augment = Callable[[Tensor, torch.Generator], Tensor]

_STACKABLE = (nn.Sequential, nn.Linear, nn.Flatten, nn.ReLU, nn.Tanh, nn.GELU, nn.Sigmoid, nn.SiLU, nn.Identity)
_EVALUATION_BATCH = 1000
_CHANNELS_LAST_FROM = 24  # pixels; smaller images train faster in the plain layout


class Nets(NamedTuple):
    """E networks of one shape (plain modules, on the CPU) and the seed of each."""

    members: tuple[nn.Module, ...]
    seeds: tuple[int, ...]


def init(make: Callable[[], nn.Module], seeds: Sequence[int]) -> Nets:
    """One fresh network per seed; the global random state is left as it was."""
    seeds = tuple(int(seed) for seed in seeds)
    if not seeds:
        raise ValueError("seeds must name at least one member, got none")
    members = []
    for seed in seeds:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            members.append(make())
    return Nets(tuple(members), seeds)


def fit(
    nets: Nets,
    x: Shaped[Tensor, "N *features"],
    y: Int[Tensor, " N"],
    *,
    epochs: int,
    batch: int,
    lr: float,
    optimizer: Optimizer = torch.optim.Adam,
    drops: Sequence[float] = (),
    augment: Augment | None = None,
    autocast: torch.dtype | None = None,
    watch: Callable[[int, Nets], None] | None = None,
) -> Nets:
    """`nets` trained on cross-entropy; the argument is not changed.

    Each member draws its own order of `x` anew in every epoch, from its own seed; a last batch smaller than `batch`
    is dropped unless it is the only one. `x` is float, or uint8 (scaled to [0, 1]).

    - `optimizer`: called as `optimizer(parameters, lr=lr)`; must work element by element (SGD, Adam, not L-BFGS).
    - `drops`: fractions of the epochs after which the learning rate is divided by ten.
    - `augment`: `augment(images, generator)` for each batch, with the member's own generator; never stacked.
    - `autocast`: `torch.bfloat16` for mixed precision (weights stay float32; activations have 8 bits of mantissa).
    - `watch`: called as `watch(epoch, nets)` after every epoch, epochs counted from 1, nets in evaluation mode.

    Runs on the GPU if there is one (`STUDYBOOK_DEVICE` overrides). Raises ValueError for bad arguments and
    FloatingPointError, naming the member and epoch, when a loss is no longer finite.
    """
    _check(x, y)
    if epochs < 1 or batch < 1 or not lr > 0:
        raise ValueError(f"epochs, batch and lr must be positive, got epochs={epochs}, batch={batch}, lr={lr}")
    if not all(0 < drop < 1 for drop in drops):
        raise ValueError(f"drops must be fractions of the epochs, between 0 and 1, got drops={tuple(drops)}")
    where = device()
    x, y = x.to(where), y.to(where)
    members = tuple(copy.deepcopy(net).to(where).train() for net in nets.members)
    stacked = augment is None and _stackable(members[0])
    groups = [_Stacked(members)] if stacked else [_Single(net, x) for net in members]
    optimizers = [optimizer(group.parameters(), lr=lr) for group in groups]
    seeds = [nets.seeds] if stacked else [(seed,) for seed in nets.seeds]
    shuffles = [torch.Generator().manual_seed(seed) for seed in nets.seeds]
    batch = min(batch, len(x))
    for epoch in _progress(range(1, epochs + 1)):
        orders = [torch.randperm(len(x), generator=shuffle) for shuffle in shuffles]
        per_group = [torch.stack(orders)] if stacked else [order[None] for order in orders]
        for group, optim, order, names in zip(groups, optimizers, per_group, seeds, strict=True):
            for option in optim.param_groups:
                option["lr"] = lr * 0.1 ** sum(epoch > drop * epochs for drop in drops)
            generator = torch.Generator().manual_seed(_mixed(names[0], epoch))
            losses = _epoch(group, optim, x, y, order.to(where), batch, augment, autocast, generator)
            if not losses.isfinite().all():
                bad = names[int((~losses.isfinite()).nonzero()[0])]
                raise FloatingPointError(f"the member with seed {bad} diverged in epoch {epoch}: lower lr (now {lr})")
        if watch is not None:
            watch(epoch, _gathered(groups, nets.seeds))
    return _gathered(groups, nets.seeds)


def logits(nets: Nets, x: Shaped[Tensor, "N *features"]) -> Float[Tensor, "E N C"]:
    """What every member answers to every input, in evaluation mode and float32, on the CPU."""
    where = device()
    out = []
    with torch.inference_mode():
        for net in nets.members:
            if net.training or where.type != "cpu":
                net = copy.deepcopy(net).to(where).eval()
            out.append(torch.cat([net(_floats(part.to(where))).float().cpu() for part in x.split(_EVALUATION_BATCH)]))
    return torch.stack(out).clone()


def device() -> torch.device:
    """Where networks run: `STUDYBOOK_DEVICE` if it is set, else a CUDA GPU if there is one, else the CPU."""
    wanted = os.environ.get("STUDYBOOK_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(wanted)
    except RuntimeError:
        raise ValueError(f"STUDYBOOK_DEVICE must be a torch device such as cpu or cuda:0, got {wanted!r}") from None
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"STUDYBOOK_DEVICE is {wanted!r}, but torch sees no CUDA GPU here; unset it to run on the CPU")
    return chosen


class _Single:
    """One member, trained as an ordinary module."""

    def __init__(self, net: nn.Module, x: Tensor) -> None:
        large = x.ndim == 4 and min(x.shape[-2:]) >= _CHANNELS_LAST_FROM
        self.layout = torch.channels_last if large else torch.contiguous_format
        self.net = net.to(memory_format=self.layout) if large else net

    def parameters(self) -> list[Tensor]:
        return list(self.net.parameters())

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        x = x[0].contiguous(memory_format=self.layout) if x.ndim == 5 else x[0]
        return F.cross_entropy(self.net(x).float(), y[0])[None]

    def members(self) -> list[nn.Module]:
        return [self.net]


class _Stacked:
    """Members whose parameters are stacked on a leading axis and trained in one pass."""

    def __init__(self, members: tuple[nn.Module, ...]) -> None:
        self.nets = members
        stacked, _ = stack_module_state(list(members))
        self.stacked = {name: value.detach().requires_grad_() for name, value in stacked.items()}
        self.template = copy.deepcopy(members[0]).to("meta")

    def parameters(self) -> list[Tensor]:
        return list(self.stacked.values())

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        def one(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
            return F.cross_entropy(functional_call(self.template, parameters, (x,)).float(), y)

        return vmap(one)(self.stacked, x, y)  # (E,)

    def members(self) -> list[nn.Module]:
        for e, net in enumerate(self.nets):
            net.load_state_dict({name: value.detach()[e] for name, value in self.stacked.items()})
        return list(self.nets)


def _epoch(
    group: _Single | _Stacked,
    optim: torch.optim.Optimizer,
    x: Tensor,
    y: Tensor,
    order: Tensor,
    batch: int,
    augment: Augment | None,
    autocast: torch.dtype | None,
    generator: torch.Generator,
) -> Float[Tensor, " E"]:
    """One pass over the data in the given order (E, N); the last batch's loss of each member."""
    with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):  # dropout must not depend on the companions
        torch.manual_seed(generator.initial_seed())
        for rows in order[:, : len(x) // batch * batch].split(batch, 1):
            images = _floats(x[rows])
            if augment is not None:
                images = augment(images[0], generator)[None]
            with torch.autocast(x.device.type, autocast, enabled=autocast is not None):
                losses = group.loss(images, y[rows])
            optim.zero_grad()
            losses.sum().backward()  # a mean would divide each member's gradient by E
            optim.step()
    return losses.detach()


def _gathered(groups: Sequence[_Single | _Stacked], seeds: tuple[int, ...]) -> Nets:
    nets = [copy.deepcopy(net).to("cpu", memory_format=torch.contiguous_format) for g in groups for net in g.members()]
    return Nets(tuple(net.eval() for net in nets), seeds)


def _stackable(net: nn.Module) -> bool:
    return all(isinstance(layer, _STACKABLE) for layer in net.modules())


def _floats(x: Tensor) -> Tensor:
    return x.float() / 255 if x.dtype == torch.uint8 else x


def _mixed(seed: int, epoch: int) -> int:
    return (seed * 1_000_003 + epoch) % 2**63


def _progress(epochs: range):
    from tqdm import tqdm

    return tqdm(epochs, "epochs", delay=2, leave=False)


def _check(x: Tensor, y: Tensor) -> None:
    if len(x) != len(y) or len(x) == 0:
        raise ValueError(f"x and y must have the same positive number of rows, got {len(x)} and {len(y)}")
    if x.is_floating_point() and not x.isfinite().all():
        raise ValueError("x must be finite, got NaN or infinity")
    if int(y.min()) < 0:
        raise ValueError(f"labels must be 0 or more, got {int(y.min())}")
