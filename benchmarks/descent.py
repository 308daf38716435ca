"""`studybook.synthetic.descent`, which solves gradient descent, against the loop that takes every step."""

import os

import click
import torch
from ab import HEADER, Times, compare

from studybook import synthetic

EXACT = 1e-8  # how far apart any weight may be


def loop(problem: synthetic.TeacherStudent, lr: float, steps: int) -> torch.Tensor:
    """The fastest plain loop: the covariance is computed once, so that a step is one product."""
    x, teacher, w = problem
    covariance, pull = x.T @ x / len(x), x.T @ (x @ teacher) / len(x)
    for _ in range(steps):
        w = w - 2 * lr * (covariance @ w - pull)
    return w


def solved(problem: synthetic.TeacherStudent, lr: float, steps: int) -> torch.Tensor:
    """The same weights without the steps between, from taking the covariance apart to the answer."""
    x, teacher, student = problem
    path = synthetic.descent(synthetic.spectrum(x), x @ teacher, student, lr=lr)
    return path.weights(torch.tensor([steps]))[0]


@click.command(context_settings={"show_default": True})
@click.option("--dims", default=500, help="Input dimensions; there are a ninth more training points.")
@click.option("--steps", default=1_000_000, help="Steps of gradient descent.")
@click.option("--looped", default=100_000, help="Of these, steps that the loop takes; its time is scaled up.")
@click.option("--pairs", default=3, help="Timed runs of each side.")
def main(dims: int, steps: int, looped: int, pairs: int) -> None:
    """Time studybook.synthetic.descent against gradient descent step by step."""
    click.echo(f"{torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}; {dims} input dimensions, float64")
    click.echo(HEADER)
    problem, lr = synthetic.teacher_student(round(dims / 0.9), dims, 1, seed=0), 0.1
    reference = solved(problem, lr, looped)

    def same(_: torch.Tensor, expected: torch.Tensor) -> None:
        if (far := float((reference - expected).abs().max())) > EXACT:
            raise AssertionError(f"descent and the loop are {far:.1e} apart after {looped:,} steps, more than {EXACT}")

    times = compare(lambda: solved(problem, lr, steps), lambda: loop(problem, lr, looped), same, pairs, "descent")
    scaled = Times(times.ours, [seconds * steps / looped for seconds in times.peer])
    click.echo(scaled.row(f"{steps:,} steps / step by step"))


if __name__ == "__main__":
    main()
