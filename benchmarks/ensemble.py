"""`studybook.ensemble.fit` against a plain loop (same weights, timed in turn), and its share of torch.mm's rate."""

import copy
import functools
import os

import click
import torch
import torch.nn.functional as F
from ab import HEADER, Times, compare

from studybook import ensemble, models

WIDTHS = (100, 128, 128, 1)
ROWS, BATCH = 3_200, 64  # each network's own rows
WIDE, WIDE_MEMBERS, WIDE_BATCH = (1024, 2048, 2048, 10), 4, 512
NEAR = 1e-3  # how far apart the weights may end on average: Adam magnifies float32's rounding of small gradients
EXACT = 1e-9  # how far apart any weight may end in float64

OPTIMIZERS = {
    "SGD": (ensemble.SGD(momentum=0.9), functools.partial(torch.optim.SGD, momentum=0.9), 0.01),
    "Adam": (ensemble.Adam(), torch.optim.Adam, 1e-3),
}


def loop(nets: ensemble.Nets, x: torch.Tensor, y: torch.Tensor, optimizer, lr: float, epochs: int) -> torch.Tensor:
    """What one writes without the library; all weights of each network, (E, P)."""
    where, out = ensemble.device(), []
    for net, seed, rows, labels in zip(nets.members, nets.seeds, x.to(where), y.to(where, x.dtype), strict=True):
        net = copy.deepcopy(net).to(where)
        optim, shuffle = optimizer(net.parameters(), lr=lr), torch.Generator().manual_seed(seed)
        for _ in range(epochs):
            for part in torch.randperm(len(rows), generator=shuffle).to(where).split(BATCH):
                optim.zero_grad()
                F.binary_cross_entropy_with_logits(net(rows[part])[:, 0], labels[part]).backward()
                optim.step()
        out.append(torch.nn.utils.parameters_to_vector(net.parameters()).detach().cpu())
    return torch.stack(out)


def apart(found: ensemble.Nets, expected: torch.Tensor) -> torch.Tensor:
    """Distance of each weight from the loop's, for the networks of the loop, (E, P)."""
    members = found.members[: len(expected)]
    flat = [torch.nn.utils.parameters_to_vector(net.parameters()).detach() for net in members]
    return (torch.stack(flat) - expected).abs()


def networks(name: str, members: int, looped: int, epochs: int, pairs: int) -> str:
    """The line for `members` small networks; the loop runs over the first `looped`, its time is scaled up."""
    ours, peer, lr = OPTIMIZERS[name]
    x = torch.randn(members, ROWS, WIDTHS[0], generator=torch.Generator().manual_seed(0))
    y = (x[..., 0] * x[..., 1] > 0).long()
    nets = ensemble.init(lambda: models.mlp(*WIDTHS), range(members))

    def first(n: int) -> ensemble.Nets:
        return ensemble.Nets(nets.members[:n], nets.seeds[:n])

    def fit(nets: ensemble.Nets, x: torch.Tensor, y: torch.Tensor) -> ensemble.Nets:
        return ensemble.fit(nets, x, y, epochs=epochs, batch=BATCH, lr=lr, optimizer=ours, loss=ensemble.logistic)

    def plain(nets: ensemble.Nets, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return loop(nets, x, y, peer, lr, epochs)

    def same(found: ensemble.Nets, expected: torch.Tensor) -> None:
        if (far := apart(found, expected).mean()) > NEAR:
            raise AssertionError(f"fit and the plain loop end {far:.1e} apart on average, more than {NEAR}")

    exact = ensemble.Nets(tuple(copy.deepcopy(net).double() for net in first(2).members), nets.seeds[:2])
    if (far := apart(fit(exact, x[:2].double(), y[:2]), plain(exact, x[:2].double(), y[:2])).max()) > EXACT:
        raise AssertionError(f"fit and the plain loop end {far:.1e} apart in float64, more than {EXACT}")
    few = first(looped), x[:looped], y[:looped]
    found = compare(lambda: fit(nets, x, y), lambda: plain(*few), same, pairs, name)
    times = Times(found.ours, [seconds * members / looped for seconds in found.peer])
    rates = (members / min(times.ours), members / min(times.peer))
    return (
        f"{times.row(f'{members:,} networks / plain loop, {name}')}\n"
        f"    networks a second, {epochs * ROWS // BATCH} steps each: {rates[0]:.1f}, and {rates[1]:.1f} in the loop"
        + (f" (measured on {looped} of them)" if looped < members else "")
    )


def wide(name: str, pairs: int) -> str:
    """The line for wide networks: fit / torch.mm of as many multiply-adds, those of forward and backward passes."""
    x = torch.randn(4 * WIDE_BATCH, WIDE[0], generator=torch.Generator().manual_seed(0))
    y = torch.arange(len(x)) % WIDE[-1]
    nets = ensemble.init(lambda: models.mlp(*WIDE), range(WIDE_MEMBERS))
    layers = [a * b for a, b in zip(WIDE[:-1], WIDE[1:], strict=True)]
    passes = 3 * sum(layers) - layers[0]  # forward, weights' gradients, inputs' gradients but for the first layer
    epochs = 4
    total = WIDE_MEMBERS * epochs * len(x) * passes
    a, b = torch.randn(WIDE_BATCH, WIDE[1]), torch.randn(WIDE[1], WIDE[2])
    out = torch.empty(WIDE_BATCH, WIDE[2])
    repeats = round(total / (WIDE_BATCH * layers[1]))

    def products() -> None:
        for _ in range(repeats):
            torch.mm(a, b, out=out)

    def fit() -> None:
        ensemble.fit(nets, x, y, epochs=epochs, batch=WIDE_BATCH, lr=1e-3, optimizer=OPTIMIZERS[name][0])

    times = compare(fit, products, lambda *_: None, pairs, name)
    ours, peer = (2e-9 * total / min(seconds) for seconds in times)
    return (
        f"{times.row(f'{WIDE_MEMBERS} wide networks / torch.mm, {name}')}\n"
        f"    {ours:.0f} of torch.mm's {peer:.0f} GFLOP/s in forward and backward passes: {ours / peer:.0%}"
    )


@click.command(context_settings={"show_default": True})
@click.option("--members", default=64, help="Small networks trained at once on the CPU.")
@click.option("--gpu-members", default=1_024, help="Small networks trained at once on the GPU, if there is one.")
@click.option("--gpu-looped", default=8, help="Of these, networks in the plain loop; its time is scaled up.")
@click.option("--epochs", default=10, help="Passes over each small network's rows, 50 steps each.")
@click.option("--pairs", default=3, help="Timed runs of each side.")
def main(members: int, gpu_members: int, gpu_looped: int, epochs: int, pairs: int) -> None:
    """Time studybook.ensemble against a plain loop over the networks, and its matrix products against torch.mm."""
    click.echo(f"{torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}; {ROWS:,} rows of their own each")
    click.echo(HEADER)
    os.environ["STUDYBOOK_DEVICE"] = "cpu"
    for name in OPTIMIZERS:
        click.echo(networks(name, members, members, epochs, pairs))
    for name in OPTIMIZERS:
        click.echo(wide(name, pairs))
    if torch.cuda.is_available():
        os.environ["STUDYBOOK_DEVICE"] = "cuda"
        click.echo(torch.cuda.get_device_name())
        for name in OPTIMIZERS:
            click.echo(networks(name, gpu_members, min(gpu_looped, gpu_members), epochs, pairs))


if __name__ == "__main__":
    main()
