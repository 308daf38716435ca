"""`studybook.synthetic.descent`, which solves gradient descent, against the loop that takes every step."""

import os
from collections.abc import Callable

import click
import torch
from ab import HEADER, Times, compare

from studybook import synthetic

EXACT = 1e-8  # how far apart any weight may be

Step = Callable[[torch.Tensor], torch.Tensor]


def by_covariance(problem: synthetic.TeacherStudent, lr: float) -> tuple[Step, torch.Tensor]:
    """The fastest plain loop: the covariance is computed once (outside the clock), so that a step is one product."""
    x, teacher, start = problem
    covariance, pull = x.T @ x / len(x), x.T @ (x @ teacher) / len(x)
    return lambda w: w - 2 * lr * (covariance @ w - pull), start


def by_points(problem: synthetic.TeacherStudent, lr: float) -> tuple[Step, torch.Tensor]:
    """The plain loop as one writes it: a step is a product with the points and one with their transpose."""
    x, teacher, start = problem
    y = x @ teacher
    return lambda w: w - 2 * lr / len(x) * (x.T @ (x @ w - y)), start


def solved(problem: synthetic.TeacherStudent, lr: float, steps: int) -> torch.Tensor:
    """The same weights without the steps between, from taking the covariance apart to the answer."""
    x, teacher, student = problem
    path = synthetic.descent(synthetic.spectrum(x), x @ teacher, student, lr=lr)
    return path.weights(torch.tensor([steps]))[0]


def line(dims: int, name: str, steps: int, looped: int, pairs: int) -> str:
    """The line for one number of input dimensions and one plain loop, which takes the first `looped` steps."""
    lr = 0.1
    problem = synthetic.teacher_student(round(dims / 0.9), dims, 1, seed=0)
    reference, (step, start) = solved(problem, lr, looped), LOOPS[name](problem, lr)

    def loop() -> torch.Tensor:
        w = start
        for _ in range(looped):
            w = step(w)
        return w

    def same(_: torch.Tensor, expected: torch.Tensor) -> None:
        if (far := float((reference - expected).abs().max())) > EXACT:
            raise AssertionError(f"descent and the loop are {far:.1e} apart after {looped:,} steps, more than {EXACT}")

    times = compare(lambda: solved(problem, lr, steps), loop, same, pairs, name)
    scaled = Times(times.ours, [seconds * steps / looped for seconds in times.peer])
    return scaled.row(f"{dims:,} dimensions / loop over {name}")


LOOPS = {"points": by_points, "covariance": by_covariance}


@click.command(context_settings={"show_default": True})
@click.option("--steps", default=1_000_000, help="Steps of gradient descent.")
@click.option("--looped", default=10_000, help="Of these, steps that the loops take; their time is scaled up.")
@click.option("--pairs", default=3, help="Timed runs of each side.")
def main(steps: int, looped: int, pairs: int) -> None:
    """Time studybook.synthetic.descent against gradient descent step by step, at 500 and 2,000 input dimensions."""
    click.echo(f"{torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}; {steps:,} steps in float64")
    click.echo(HEADER)
    for dims in (500, 2_000):
        for name in LOOPS:
            click.echo(line(dims, name, steps, looped, pairs))


if __name__ == "__main__":
    main()
