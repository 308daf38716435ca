"""Training many networks of one shape at once: members are an axis, and none knows its companions.

Fully connected members are stacked and trained by batched matrix products, forward and backward pass written out by
hand. Networks with convolutions run one after another, since stacked convolutions are slower; networks with batch norm
or dropout must, since those keep state or draw random numbers. Both ways give a member the same initial weights,
batches and updates, alone or in company, up to float rounding.

64 networks of 100-128-128-1 units train about six times as fast as in a plain loop over them on two cores
(`python -m benchmarks`).
"""

import contextlib
import copy
import math
import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

Augment = Callable[[Tensor, torch.Generator], Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]
Rate = float | Tensor  # one for all weights, or one for each
Number = int | float | Sequence[int | float] | Tensor

_EVALUATION_BATCH = 1000
_CHANNELS_LAST_FROM = 24  # pixels; smaller images train faster in the plain layout
_GROUP_BYTES = {"cpu": 64 * 2**20, "cuda": 8 * 2**30}  # weights, state and activations of members stepped together


class Log(NamedTuple):
    """How the training of E members went; T steps were recorded."""

    steps: Int[Tensor, " E"]  # updates made
    gradient: Float[Tensor, " E"]  # norm of the objective's gradient at the last check; NaN where there was none
    converged: Bool[Tensor, " E"]
    diverged: Int[Tensor, " E"]  # the step whose loss, or after which a weight, was not finite; 0 for none
    at: tuple[int, ...]
    curves: Shaped[Tensor, "T E *values"] | None


class Nets(NamedTuple):
    """E networks of one shape (plain modules, on the CPU), the seed of each, and how training went if it did."""

    members: tuple[nn.Module, ...]
    seeds: tuple[int, ...]
    log: Log | None = None


class SGD(NamedTuple):
    """Stochastic gradient descent; weight decay is added to the gradient, as in `torch.optim.SGD`."""

    momentum: float = 0.0
    nesterov: bool = False

    def state(self, w: Tensor) -> list[Tensor]:
        return [torch.zeros_like(w)] if self.momentum else []

    def update(self, w: Tensor, g: Tensor, state: list[Tensor], rate: Rate, decay: Rate, step: int) -> None:
        _add_product(g, w, decay)
        if self.momentum:
            (m,) = state
            torch.add(g, m, alpha=self.momentum, out=m)
            g = g.add_(m, alpha=self.momentum) if self.nesterov else m
        _add_product(w, g, -rate)


class Adam(NamedTuple):
    """Adam, or with `decoupled` AdamW, whose weight decay shrinks the weights instead of joining the gradient.

    Reference: Kingma, Ba (2015), Adam; Loshchilov, Hutter (2019), Decoupled Weight Decay Regularization.
    """

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    decoupled: bool = False

    def state(self, w: Tensor) -> list[Tensor]:
        return [torch.zeros_like(w) for _ in range(3)]

    def update(self, w: Tensor, g: Tensor, state: list[Tensor], rate: Rate, decay: Rate, step: int) -> None:
        mean, square, scratch = state
        if self.decoupled:
            w.mul_(1 - rate * decay)
        else:
            _add_product(g, w, decay)
        mean.lerp_(g, 1 - self.beta1)
        square.mul_(self.beta2).addcmul_(g, g, value=1 - self.beta2)
        torch.sqrt(square, out=scratch).div_(math.sqrt(1 - self.beta2**step)).add_(self.eps)
        rate = rate / (1 - self.beta1**step)
        if isinstance(rate, float):
            w.addcdiv_(mean, scratch, value=-rate)
        else:
            w.sub_(torch.div(mean, scratch, out=scratch).mul_(rate))


def cross_entropy(logits: Float[Tensor, "*B C"], labels: Int[Tensor, "*B"]) -> Float[Tensor, "*B"]:
    """Minus the log of the softmax probability of each example's label, in nats."""
    return -logits.log_softmax(-1).gather(-1, labels[..., None])[..., 0]


def logistic(logits: Float[Tensor, "*B 1"], labels: Int[Tensor, "*B"]) -> Float[Tensor, "*B"]:
    """Cross-entropy of two classes from one output, in nats; label 1 wants it positive, label 0 negative."""
    return F.softplus(torch.where(labels == 1, -logits[..., 0], logits[..., 0]))


def squared(logits: Float[Tensor, "*B C"], targets: Shaped[Tensor, "..."]) -> Float[Tensor, "*B"]:
    """Squared distance between outputs and targets, summed over outputs (no factor of one half).

    Targets may be labels: they become one-hot vectors, or -1 and 1 if there is a single output.
    """
    if not targets.is_floating_point():
        one = logits.shape[-1] == 1
        targets = 2 * targets[..., None] - 1 if one else F.one_hot(targets, logits.shape[-1])
    return (logits - targets).square().sum(-1)


def drops(*fractions: float) -> Callable[[float], float]:
    """Schedule that divides the learning rate by ten after each of the fractions of training."""
    if not all(0 < fraction < 1 for fraction in fractions):
        raise ValueError(f"drops takes fractions of training, between 0 and 1, got {fractions}")
    return lambda done: 0.1 ** sum(done >= fraction for fraction in fractions)


def cosine(warmup: float = 0.0) -> Callable[[float], float]:
    """Schedule that rises linearly over the fraction `warmup` of training, then falls to zero as half a cosine."""
    if not 0 <= warmup < 1:
        raise ValueError(f"warmup is a fraction of training, from 0 to below 1, got warmup={warmup}")

    def factor(done: float) -> float:
        return done / warmup if done < warmup else (1 + math.cos(math.pi * (done - warmup) / (1 - warmup))) / 2

    return factor


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
    x: Shaped[Tensor, "..."],
    y: Shaped[Tensor, "..."],
    *,
    epochs: int,
    batch: int,
    lr: Number,
    optimizer: SGD | Adam = Adam(),  # noqa: B008 (it is immutable)
    loss: Loss = cross_entropy,
    weight_decay: Number = 0.0,
    label_noise: Number = 0.0,
    schedule: Callable[[float], float] | None = None,
    clip: float | None = None,
    tolerance: float | None = None,
    every: int = 1,
    augment: Augment | None = None,
    autocast: torch.dtype | None = None,
    record: Callable[[Nets], Tensor] | None = None,
    at: Sequence[int] = (),
    keep_diverged: bool = False,
) -> Nets:
    """`nets` trained, with a log; the argument is not changed.

    All members learn from the same rows if `x` is (N, *features) and `y` (N,); each from its own if they are
    (E, N, *features) and (E, N). Regression targets are float and have one more axis, (N, C) or (E, N, C). Inputs are
    float, or uint8 (scaled to [0, 1]). Each member draws its own order of rows anew in every epoch, from its own seed;
    a last batch smaller than `batch` is dropped unless it is the only one.

    `lr`, `weight_decay` and `label_noise` are one number, or one per member.

    - `loss`: maps logits (..., B, C) and labels (..., B) to the loss of each example, (..., B): `cross_entropy`,
      `logistic`, `squared` or your own. A member minimizes its mean.
    - `label_noise`: this share of a member's labels is drawn anew from all classes, once, from its seed.
    - `schedule`: maps the fraction of training that is done, in [0, 1), to a factor on `lr`: `drops`, `cosine`.
    - `clip`: a member's gradient is shortened to this norm where it is longer.
    - `tolerance`: a member stops once the norm of its objective's gradient over all its rows (weight decay included)
      is at most this; checked after every `every` epochs. The others go on.
    - `augment`: `augment(images, generator)` for each batch, with the member's own generator; never stacked.
    - `autocast`: `torch.bfloat16` for mixed precision (weights stay float32; activations have 8 bits of mantissa).
    - `record`, `at`: `record(nets)` is called after the updates counted in `at` (0: before the first), with all members
      in evaluation mode; its answers, (E, ...), become `log.curves`, (T, E, ...).
    - `keep_diverged`: go on without members whose loss is no longer finite. Their weights become NaN, so that no score
      of theirs can be mistaken for a result; `log.diverged` names the step.

    Runs on the GPU if there is one (`STUDYBOOK_DEVICE` overrides). Memory is that of all weights and optimizer states,
    and of the activations of as many members as are stepped together. Raises ValueError for bad arguments and
    FloatingPointError, naming members and steps, when losses are no longer finite.
    """
    own = _own_rows(nets, x, y)
    rows = y.shape[1] if own else len(y)
    batch = min(batch, rows)
    per_epoch = rows // max(batch, 1)
    total = epochs * per_epoch
    _check(nets, x, y, own, epochs, batch, every, clip, tolerance, loss)
    if (record is None) != (not at) or any(not 0 <= step <= total for step in at) or list(at) != sorted(set(at)):
        raise ValueError(f"record needs at, and at record: rising steps between 0 and {total}, got at={tuple(at)}")
    if tolerance is not None and getattr(optimizer, "decoupled", False):
        raise ValueError("tolerance needs an objective, which decoupled weight decay does not have; use Adam() or SGD")
    where, E = device(), len(nets.members)
    dtype = next(nets.members[0].parameters()).dtype
    rate, decay, noise = (
        _per_member(name, value, E).to(dtype)
        for name, value in (("lr", lr), ("weight_decay", weight_decay), ("label_noise", label_noise))
    )
    if not (rate > 0).all():
        raise ValueError(f"lr must be positive, got {lr}")
    y, own_labels = (_noisy(nets, x, y, own, noise), True) if noise.any() else (y, own)
    x, y = x.to(where), y.to(where)
    members = tuple(copy.deepcopy(net).to(where).train() for net in nets.members)
    stacked = augment is None and autocast is None and _stackable(members[0])
    plan = _Plan(batch, loss, optimizer, clip, schedule, total, augment, autocast)
    groups = []
    for part in torch.arange(E).split(_group_size(members[0], x, plan) if stacked else 1):
        of = slice(int(part[0]), int(part[-1]) + 1)
        networks = _Dense(members[of]).learn() if stacked else _Single(members[of], x)
        chosen = (x[of] if own else x), (y[of] if own_labels else y), own, own_labels
        groups.append(_Group(networks, nets.seeds[of], _Rows(*chosen), rate[of], decay[of], plan))
    live = Nets(members, nets.seeds)
    curves = [_recorded(record, live)] if 0 in at else []
    for stop in _progress(sorted({*range(per_epoch, total + 1, per_epoch), *at} - {0}), E):
        for group in groups:
            group.advance(stop)
        if stop % per_epoch == 0:
            _let_go_of_diverged(groups, rate.tolist(), keep_diverged)
            if tolerance is not None and stop // per_epoch % every == 0:
                for group in groups:
                    group.let_go_of_converged(tolerance)
        if stop in at:
            curves.append(_recorded(record, live))
        if not any(len(group.active) for group in groups) and stop >= max(at, default=0):
            break
    found = [torch.cat([getattr(group, name) for group in groups]) for name in Log._fields[:4]]
    log = Log(*found, tuple(at), torch.stack(curves) if curves else None)
    return Nets(tuple(_home(net) for net in members), nets.seeds, log)


def logits(nets: Nets, x: Shaped[Tensor, "..."], *, own: bool = False) -> Float[Tensor, "E N C"]:
    """What every member answers to every input, in evaluation mode and float32, on the CPU.

    `x` is (N, *features), or with `own` each member's inputs, (E, N, *features).
    """
    where = device()
    if own and len(x) != len(nets.members):
        raise ValueError(f"with own=True x holds one set of inputs per member, {len(nets.members)}, got {len(x)}")
    if len(nets.members) > 1 and _stackable(nets.members[0]):
        return _stacked_logits(nets, x, own, where)
    out = []
    with torch.inference_mode():
        for e, net in enumerate(nets.members):
            if net.training or where.type != "cpu":
                net = copy.deepcopy(net).to(where).eval()
            parts = (x[e] if own else x).split(_EVALUATION_BATCH)
            out.append(torch.cat([net(_floats(part.to(where))).float().cpu() for part in parts]))
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


class _Plan(NamedTuple):
    """What all members have in common."""

    batch: int
    loss: Loss
    optimizer: SGD | Adam
    clip: float | None
    schedule: Callable[[float], float] | None
    total: int  # steps
    augment: Augment | None
    autocast: torch.dtype | None


class _Rows(NamedTuple):
    """The rows that a group learns from: everybody's, or with a leading axis each member's own."""

    x: Tensor
    y: Tensor
    own_x: bool
    own_y: bool

    def count(self) -> int:
        return self.y.shape[1] if self.own_y else len(self.y)

    def epoch(self, order: Int[Tensor, "A N"], active: Int[Tensor, " A"]) -> list[tuple[Tensor, Int[Tensor, "A N"]]]:
        """All rows of inputs and of targets, each with the order in which the learning members take them."""
        offsets = active[:, None] * self.count()
        pairs = ((self.x, self.own_x), (self.y, self.own_y))
        return [(t.flatten(0, 1), order + offsets) if own else (t, order) for t, own in pairs]


def _batch(epoch: list[tuple[Tensor, Int[Tensor, "A N"]]], at: slice) -> list[Tensor]:
    """Each learning member's rows `at`, contiguous: (A, B, *features) and (A, B)."""
    return [t.index_select(0, order[:, at].flatten()).unflatten(0, (len(order), -1)) for t, order in epoch]


class _Group:
    """Members that are stepped together. Tensors with an axis A hold only those that still learn."""

    def __init__(
        self,
        networks: "_Single | _Dense",
        seeds: tuple[int, ...],
        rows: _Rows,
        rate: Float[Tensor, " E"],
        decay: Float[Tensor, " E"],
        plan: _Plan,
    ) -> None:
        self.networks, self.seeds, self.rows, self.plan = networks, seeds, rows, plan
        E, where = len(seeds), networks.w.device
        self.rate, self.decay = (_spread(v.to(where), networks.blocks(networks.w)) for v in (rate, decay))
        self.active = torch.arange(E, device=where)
        self.moments = plan.optimizer.state(networks.w)
        self.shuffles = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.epoch: list[tuple[Tensor, Tensor]] = []
        self.random = _Random(networks.w.device) if isinstance(networks, _Single) else None
        self.done = 0
        self.losses: list[Tensor] = []  # of each step of this epoch, (A,)
        self.steps, self.diverged = torch.zeros(E, dtype=torch.int64), torch.zeros(E, dtype=torch.int64)
        self.gradient, self.converged = torch.full((E,), math.nan), torch.zeros(E, dtype=torch.bool)

    def advance(self, stop: int) -> None:
        """All updates up to number `stop`, which lie within one epoch."""
        start, self.done = self.done, stop
        if not len(self.active):
            return
        plan, networks = self.plan, self.networks
        number, first = divmod(start, self.rows.count() // plan.batch)
        if first == 0:
            orders = [torch.randperm(self.rows.count(), generator=self.shuffles[e]) for e in self.active.tolist()]
            self.epoch = self.rows.epoch(torch.stack(orders).to(networks.w.device), self.active)
            if self.random:
                self.random.restart(_mixed(self.seeds[0], number + 1))
        with self.random or contextlib.nullcontext():
            for step in range(start, stop):
                at = (first + step - start) * plan.batch
                x, y = _batch(self.epoch, slice(at, at + plan.batch))
                if plan.augment is not None:
                    x = plan.augment(_floats(x[0]), self.random.generator)[None]
                self.losses.append(networks.gradient(x, y, plan))
                if plan.clip is not None:
                    blocks = networks.blocks(networks.g)
                    short = (plan.clip / (_norms(blocks) + 1e-6)).clamp(max=1)  # (A,)
                    for block in blocks:
                        block.mul_(short[:, None])
                rate = self.rate if plan.schedule is None else self.rate * plan.schedule(step / plan.total)
                plan.optimizer.update(networks.w, networks.g, self.moments, rate, self.decay, step + 1)
        self.steps[self.active.cpu()] = stop

    def newly_diverged(self) -> list[int]:
        """Members whose loss or weights were not finite at a step of this epoch, which `diverged` then names."""
        if not self.losses:
            return []
        bad = ~torch.stack(self.losses).isfinite()  # (steps, A)
        bad[-1] |= ~_norms(self.networks.blocks(self.networks.w)).isfinite()  # the last update itself may overflow
        first, self.losses = self.done - len(bad) + 1, []
        hit = bad.any(0)
        members = self.active[hit].cpu()
        self.diverged[members] = (first + bad.int().argmax(0)[hit]).cpu()
        return members.tolist()

    def let_go_of_converged(self, tolerance: float) -> None:
        """Measures the gradient over all rows and keeps only members where it is large."""
        if not len(self.active):
            return
        everything = torch.arange(self.rows.count(), device=self.active.device).expand(len(self.active), -1)
        share = max(self.plan.batch, _EVALUATION_BATCH // len(self.active))
        epoch = self.rows.epoch(everything, self.active)
        parts = (_batch(epoch, slice(at, at + share)) for at in range(0, self.rows.count(), share))
        total = self.networks.full_gradient(parts, self.rows.count(), self.plan)
        _add_product(total, self.networks.w, self.decay)
        norm, active = _norms(self.networks.blocks(total)), self.active.cpu()
        self.gradient[active] = norm.float().cpu()
        self.converged[active] = (norm <= tolerance).cpu()
        self.keep(norm > tolerance)

    def keep(self, learning: Bool[Tensor, " A"]) -> None:
        """Only these go on; the weights of the others stay as they are."""
        if learning.all():
            return
        networks = self.networks
        self.moments = [_chosen(networks.blocks(moment), learning) for moment in self.moments]
        self.rate, self.decay = (
            _chosen(networks.blocks(v), learning) if isinstance(v, Tensor) else v for v in (self.rate, self.decay)
        )
        networks.keep(learning)
        self.active = self.active[learning]
        self.epoch = [(values, order[learning]) for values, order in self.epoch]


class _Random:
    """The random state of one member: what dropout draws must not depend on its companions."""

    def __init__(self, where: torch.device) -> None:
        self.where = [where] if where.type == "cuda" else []

    def restart(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)  # of `augment`
        self.seed, self.states = seed, None

    def __enter__(self) -> None:
        self.fork = torch.random.fork_rng(devices=self.where)
        self.fork.__enter__()
        if self.states is None:
            torch.manual_seed(self.seed)
        else:
            torch.set_rng_state(self.states[0])
            for device, state in zip(self.where, self.states[1:], strict=True):
                torch.cuda.set_rng_state(state, device)

    def __exit__(self, *error: object) -> None:
        self.states = [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in self.where)]
        self.fork.__exit__(*error)


class _Single:
    """One member, trained as an ordinary module whose parameters are views of `w`, (P)."""

    def __init__(self, members: tuple[nn.Module, ...], x: Tensor) -> None:
        (self.net,) = members
        large = x.ndim >= 4 and min(x.shape[-2:]) >= _CHANNELS_LAST_FROM
        self.layout = torch.channels_last if large else torch.contiguous_format
        parameters = [p for p in self.net.parameters() if p.requires_grad]
        self.w = torch.cat([p.detach().flatten() for p in parameters])
        self.g = torch.zeros_like(self.w)
        start = 0
        for p in parameters:
            values = p.detach().clone()
            p.data, p.grad = (self._view(flat[start : start + p.numel()], p) for flat in (self.w, self.g))
            p.data.copy_(values)
            start += p.numel()

    def _view(self, flat: Tensor, like: Tensor) -> Tensor:
        if self.layout == torch.channels_last and like.ndim == 4:
            outer, inner, height, width = like.shape
            return flat.view(outer, height, width, inner).permute(0, 3, 1, 2)
        return flat.view(like.shape)

    def gradient(self, x: Tensor, y: Tensor, plan: _Plan) -> Float[Tensor, " 1"]:
        self.g.zero_()
        return self._add_gradient(x, y, plan, 1.0)

    def full_gradient(self, parts: Iterable[tuple[Tensor, Tensor]], count: int, plan: _Plan) -> Float[Tensor, " P"]:
        self.net.eval()  # the objective without dropout, and with batch norm as it will be used
        self.g.zero_()
        for x, y in parts:
            self._add_gradient(x, y, plan, y.shape[1] / count)
        self.net.train()
        return self.g.clone()

    def _add_gradient(self, x: Tensor, y: Tensor, plan: _Plan, share: float) -> Float[Tensor, " 1"]:
        x = _floats(x[0]).to(self.w.dtype)
        if x.ndim == 4:
            x = x.contiguous(memory_format=self.layout)
        with torch.enable_grad():
            with torch.autocast(x.device.type, plan.autocast, enabled=plan.autocast is not None):
                out = self.net(x)
            loss = plan.loss(out.float() if plan.autocast else out, y[0]).mean()
            (loss * share).backward()
        return loss.detach()[None]

    def keep(self, learning: Bool[Tensor, " 1"]) -> None:
        """Lets go of the member, which keeps its weights."""
        self.w, self.g = (_chosen(self.blocks(flat), learning) for flat in (self.w, self.g))

    def blocks(self, flat: Float[Tensor, " W"]) -> list[Float[Tensor, "A W"]]:
        return [flat.view(-1, len(flat)) if len(flat) else flat[None, :0][:0]]


class _Dense:
    """Stacked fully connected members: forward and backward pass as batched products.

    `w` and `g` are (W,): for each weight and bias in turn, those of all members. So every product has contiguous
    operands, and one call updates all.
    """

    def __init__(self, members: tuple[nn.Module, ...]) -> None:
        self.members, self.layers = members, _layers(members[0])
        self.sizes = [p.numel() for p in members[0].parameters()]
        alike = zip(*(net.parameters() for net in members), strict=True)  # the same parameter of each member
        self.w = torch.cat([p.detach().flatten() for parameters in alike for p in parameters])
        self.weights = self.matrices(self.w)

    def learn(self) -> "_Dense":
        """Makes the members' parameters views of `w`, so that they follow."""
        self.g = torch.zeros_like(self.w)
        self.weights, self.grads = self.matrices(self.w), self.matrices(self.g)
        alike = zip(*(net.parameters() for net in self.members), strict=True)
        for parameters, block in zip(alike, self.blocks(self.w), strict=True):
            for p, values in zip(parameters, block, strict=True):
                p.data = values.view(p.shape)
        return self

    def keep(self, learning: Bool[Tensor, " A"]) -> None:
        """Lets go of the others, which keep their weights."""
        self.w = _chosen(self.blocks(self.w), learning)
        self.members = tuple(net for net, on in zip(self.members, learning.tolist(), strict=True) if on)
        if self.members:
            self.learn()

    def blocks(self, flat: Float[Tensor, " W"]) -> list[Float[Tensor, "A _"]]:
        A = len(flat) // sum(self.sizes)
        return [
            part.view(A, size) for part, size in zip(flat.split([A * n for n in self.sizes]), self.sizes, strict=True)
        ]

    def matrices(self, flat: Float[Tensor, " W"]) -> dict[int, tuple[Tensor, Tensor | None]]:
        """Views of `flat` as each linear layer's weight (A, out, in) and bias (A, 1, out)."""
        blocks = iter(self.blocks(flat))
        return {
            i: (next(blocks).unflatten(1, layer.weight.shape), None if layer.bias is None else next(blocks)[:, None])
            for i, layer in enumerate(self.layers)
            if isinstance(layer, nn.Linear)
        }

    def forward(self, x: Shaped[Tensor, "A B *features"]) -> list[Float[Tensor, "A B _"]]:
        """What each layer gets, then the logits."""
        weights, seen = self.weights, [_floats(x).flatten(2).to(self.w.dtype)]
        with torch.no_grad():
            for i, layer in enumerate(self.layers):
                seen.append(_product(seen[i], *weights[i]) if i in weights else _ACTIVATIONS[type(layer)][0](seen[i]))
        return seen

    def gradient(self, x: Tensor, y: Tensor, plan: _Plan) -> Float[Tensor, " A"]:
        return self._gradient(x, y, plan, 1.0, 0)

    def full_gradient(self, parts: Iterable[tuple[Tensor, Tensor]], count: int, plan: _Plan) -> Float[Tensor, " W"]:
        for i, (x, y) in enumerate(parts):
            self._gradient(x, y, plan, y.shape[1] / count, int(i > 0))
        return self.g.clone()

    def _gradient(self, x: Tensor, y: Tensor, plan: _Plan, share: float, keep: int) -> Float[Tensor, " A"]:
        """Losses (A,); `g` becomes `keep` x itself + `share` x the gradient of the mean loss over these rows."""
        weights, seen = self.weights, self.forward(x)
        out = seen[-1].detach().requires_grad_()  # so that `seen` itself needs none
        with torch.enable_grad():
            losses = plan.loss(out, y).mean(-1)  # (A,)
        (d,) = torch.autograd.grad(losses.sum(), out)  # a mean would divide each member's gradient by their number
        if share != 1:
            d = d * share
        for i in reversed(range(len(self.layers))):
            if i in weights:
                gw, gb = self.grads[i]
                gw.baddbmm_(d.transpose(1, 2), seen[i], beta=keep)
                if gb is not None:
                    gb.mul_(keep).add_(d.sum(1, keepdim=True)) if keep else torch.sum(d, 1, True, out=gb)
                if i:
                    d = d * weights[i][0] if d.shape[-1] == 1 else torch.bmm(d, weights[i][0])
            else:
                d = _ACTIVATIONS[type(self.layers[i])][1](d, seen[i], seen[i + 1])
        return losses.detach()


def _norms(blocks: list[Float[Tensor, "A _"]]) -> Float[Tensor, " A"]:
    return sum(block.square().sum(1) for block in blocks).sqrt()


def _chosen(blocks: list[Float[Tensor, "A _"]], learning: Bool[Tensor, " A"]) -> Float[Tensor, " V"]:
    return torch.cat([block[learning].flatten() for block in blocks])


def _spread(value: Float[Tensor, " A"], blocks: list[Float[Tensor, "A _"]]) -> Rate:
    """One number if all members have the same, else one for each weight."""
    if (value == value[0]).all():
        return float(value[0])
    return torch.cat([value.repeat_interleave(block.shape[1]) for block in blocks])


def _add_product(to: Tensor, values: Tensor, rate: Rate) -> None:
    if isinstance(rate, Tensor):
        to.addcmul_(values, rate)
    elif rate:
        to.add_(values, alpha=rate)


def _relu_backward(d: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return torch.ops.aten.threshold_backward.grad_input(d, y, 0, grad_input=d)


def _tanh_backward(d: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return torch.ops.aten.tanh_backward.grad_input(d, y, grad_input=d)


def _sigmoid_backward(d: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return torch.ops.aten.sigmoid_backward.grad_input(d, y, grad_input=d)


def _silu_backward(d: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return torch.ops.aten.silu_backward(d, x)


# each activation's values, written over its input where the gradient does not need that, and gradient
_ACTIVATIONS = {
    nn.ReLU: (torch.relu_, _relu_backward),
    nn.Tanh: (torch.tanh_, _tanh_backward),
    nn.Sigmoid: (torch.sigmoid_, _sigmoid_backward),
    nn.SiLU: (F.silu, _silu_backward),
}


def _layers(net: nn.Module) -> list[nn.Module]:
    """The layers of a fully connected network in order, without those that only rearrange."""
    if type(net) is nn.Sequential:  # not one with a forward pass of its own
        return [inner for layer in net for inner in _layers(layer)]
    return [] if isinstance(net, nn.Flatten | nn.Identity) else [net]


def _stackable(net: nn.Module) -> bool:
    layers = _layers(net)
    plain = all(type(layer) in (nn.Linear, *_ACTIVATIONS) for layer in layers)
    flattens = all((m.start_dim, m.end_dim) == (1, -1) for m in net.modules() if isinstance(m, nn.Flatten))
    learns = all(p.requires_grad for p in net.parameters())
    after = [type(layers[i - 1]) for i, layer in enumerate(layers) if type(layer) in _ACTIVATIONS]
    alternate = all(kind is nn.Linear for kind in after)  # an activation may overwrite what it gets
    shared = len(list(net.parameters())) < sum(len(list(layer.parameters())) for layer in layers)
    return (
        bool(layers) and isinstance(layers[0], nn.Linear) and plain and alternate and flattens and learns and not shared
    )


def _product(x: Float[Tensor, "A B I"], w: Float[Tensor, "A O I"], b: Float[Tensor, "A 1 O"] | None) -> Tensor:
    return torch.bmm(x, w.transpose(1, 2)) if b is None else torch.baddbmm(b, x, w.transpose(1, 2))


def _stacked_logits(nets: Nets, x: Tensor, own: bool, where: torch.device) -> Float[Tensor, "E N C"]:
    weights, units = _sizes(nets.members[0])
    size = max(1, _GROUP_BYTES[where.type] // (4 * (weights + units * min(x.shape[int(own)], _EVALUATION_BATCH))))
    out = []
    for rows in torch.arange(len(nets.members)).split(size):
        dense = _Dense(nets.members[int(rows[0]) : int(rows[-1]) + 1])
        dense.w = dense.w.to(where)
        dense.weights, parts = dense.matrices(dense.w), (x[rows] if own else x[None]).split(_EVALUATION_BATCH, 1)
        out.append(
            torch.cat([dense.forward(part.to(where).expand(len(rows), *part.shape[1:]))[-1] for part in parts], 1)
        )
    return torch.cat(out).float().cpu()


def _sizes(net: nn.Module) -> tuple[int, int]:
    """How many weights a fully connected network has, and how many units besides its inputs."""
    units = sum(layer.out_features for layer in _layers(net) if isinstance(layer, nn.Linear))
    return sum(p.numel() for p in net.parameters()), units


def _group_size(net: nn.Module, x: Tensor, plan: _Plan) -> int:
    weights, units = _sizes(net)
    states = len(plan.optimizer.state(torch.empty(0)))
    return max(1, _GROUP_BYTES[x.device.type] // (4 * ((2 + states) * weights + 2 * plan.batch * units)))


def _recorded(record: Callable[[Nets], Tensor], live: Nets) -> Tensor:
    for net in live.members:
        net.eval()
    found = torch.as_tensor(record(live))
    for net in live.members:
        net.train()
    if found.ndim == 0 or len(found) != len(live.members):
        E = len(live.members)
        raise ValueError(f"record must answer with one row per member, {E}, got shape {tuple(found.shape)}")
    return found.detach().cpu().clone()


def _let_go_of_diverged(groups: Sequence[_Group], rates: list[float], keep: bool) -> None:
    """Raises, naming members and steps, or lets them go with weights that cannot pass for a result."""
    bad, start = [], 0
    for group in groups:
        for e in (fresh := group.newly_diverged()):
            bad.append(
                f"member {start + e} (seed {group.seeds[e]}, lr {rates[start + e]:g}) at step {group.diverged[e]}"
            )
        start += len(group.seeds)
        if keep and fresh:
            hit = torch.isin(group.active, torch.tensor(fresh, device=group.active.device))
            for block in group.networks.blocks(group.networks.w):
                block[hit] = math.nan
            group.keep(~hit)
    if not bad:
        return
    more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
    message = f"{len(bad)} of {len(rates)} members diverged: {'; '.join(bad[:5])}{more}; lower lr"
    if not keep:
        raise FloatingPointError(message)
    warnings.warn(message, stacklevel=3)


def _home(net: nn.Module) -> nn.Module:
    for p in net.parameters():
        p.grad = None
        p.data = p.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
    return net.cpu().eval()


def _floats(x: Tensor) -> Tensor:
    return x.float() / 255 if x.dtype == torch.uint8 else x


def _mixed(seed: int, epoch: int) -> int:
    return (seed * 1_000_003 + epoch) % 2**63


def _per_member(name: str, value: Number, members: int) -> Float[Tensor, " E"]:
    found = torch.as_tensor(value, dtype=torch.float64)
    if found.ndim > 1 or (found.ndim == 1 and len(found) != members):
        raise ValueError(f"{name} must be one number or one per member, {members}, got shape {tuple(found.shape)}")
    if not (found.isfinite() & (found >= 0)).all():
        raise ValueError(f"{name} must be finite and not negative, got {value}")
    return found.expand(members).clone()


def _noisy(nets: Nets, x: Tensor, y: Tensor, own: bool, noise: Float[Tensor, " E"]) -> Int[Tensor, "E N"]:
    """Each member's labels, a share of them drawn anew."""
    if y.is_floating_point() or noise.max() > 1:
        raise ValueError(
            f"label_noise is a share of labels, from 0 to 1, got {float(noise.max())} and {y.dtype} targets"
        )
    classes = max(_outputs(nets, x, own), 2)
    out = []
    for e, seed in enumerate(nets.seeds):
        generator = torch.Generator().manual_seed(_mixed(seed, 0))
        labels = y[e] if own else y
        drawn = torch.randint(classes, labels.shape, generator=generator)
        hit = torch.rand(labels.shape, generator=generator) < noise[e]
        out.append(torch.where(hit, drawn.to(labels), labels))
    return torch.stack(out)


def _outputs(nets: Nets, x: Tensor, own: bool) -> int:
    with torch.no_grad():
        return copy.deepcopy(nets.members[0]).eval()(_floats((x[0] if own else x)[:1])).shape[-1]


def _progress(steps: Sequence[int], members: int) -> Iterable[int]:
    from tqdm import tqdm

    return tqdm(steps, f"training {members} network{'s' * (members > 1)}", delay=2, leave=False)


def _own_rows(nets: Nets, x: Tensor, y: Tensor) -> bool:
    """Whether each member brings rows of its own, after checks of the shapes."""
    E, axes = len(nets.members), y.ndim - y.is_floating_point()
    if axes not in (1, 2):
        raise ValueError(f"y must be labels (N) or (E, N), or float targets (N, C) or (E, N, C), got {tuple(y.shape)}")
    if axes == 2 and not len(x) == len(y) == E:
        raise ValueError(f"own rows need one set per member, {E}, got x {tuple(x.shape)} and y {tuple(y.shape)}")
    if x.shape[:axes] != y.shape[:axes] or y.numel() == 0:
        a, b = (t.shape[axes - 1] if t.ndim >= axes else 0 for t in (x, y))
        raise ValueError(f"x and y must have the same positive number of rows, got {a} and {b}")
    return axes == 2


def _check(
    nets: Nets,
    x: Tensor,
    y: Tensor,
    own: bool,
    epochs: int,
    batch: int,
    every: int,
    clip: float | None,
    tolerance: float | None,
    loss: Loss,
) -> None:
    if epochs < 1 or batch < 1 or every < 1:
        raise ValueError(f"epochs, batch and every must be positive, got epochs={epochs}, batch={batch}, every={every}")
    for name, bound in (("clip", clip), ("tolerance", tolerance)):
        if bound is not None and not bound > 0:
            raise ValueError(f"{name} must be positive, got {name}={bound}")
    for name, values in (("x", x), ("y", y)):
        if values.is_floating_point() and not torch.stack(values.aminmax()).isfinite().all():
            raise ValueError(f"{name} must be finite, got NaN or infinity")
    outputs = _outputs(nets, x, own)
    if loss is cross_entropy and outputs == 1 or loss is logistic and outputs != 1:
        raise ValueError(
            f"logistic loss takes one output and cross-entropy two or more, got {outputs} with {loss.__name__}"
        )
    if y.is_floating_point():
        if y.shape[-1] != outputs:
            raise ValueError(
                f"targets must have as many columns as the networks have outputs, {outputs}, got {y.shape[-1]}"
            )
    elif int(y.min()) < 0 or int(y.max()) >= max(outputs, 2):
        raise ValueError(f"labels must be 0 to {max(outputs, 2) - 1}, got {int(y.min())} to {int(y.max())}")
