"""Claims, written before anything is measured, and the verdicts on them."""

import html
import math
from dataclasses import asdict, dataclass
from typing import NamedTuple

from studybook.stats import Interval

VERDICTS = ("reproduced", "contradicted", "inconclusive")


@dataclass(frozen=True)
class Claim:
    """One falsifiable sentence with its threshold: the measured number lies `above` or `below` it.

    `paper` is the paper's own number with its setting; `control` marks what must hold for the experiment to mean
    anything. `unit` is a format for the numbers, such as ".1%" or ".3f".
    """

    name: str
    text: str
    above: float | None = None
    below: float | None = None
    paper: str = ""
    control: bool = False
    unit: str = ".3f"

    def __post_init__(self) -> None:
        if not self.name or not self.text:
            raise ValueError(f"a claim needs a name and a sentence, got name={self.name!r}, text={self.text!r}")
        if (self.above is None) == (self.below is None):
            raise ValueError(
                f"claim {self.name}: give either above or below, got above={self.above}, below={self.below}"
            )
        if not math.isfinite(self.threshold):
            raise ValueError(f"claim {self.name}: the threshold must be a finite number, got {self.threshold}")

    @property
    def threshold(self) -> float:
        """The number that separates reproduced from contradicted."""
        return self.above if self.above is not None else self.below


class Verdict(NamedTuple):
    """A claim with the interval measured for it and what follows; shows itself in a notebook."""

    claim: Claim
    interval: Interval
    verdict: str

    @property
    def record(self) -> dict:
        """Plain values for the run record; an infinite end of the interval is None."""
        ends = {end: value if math.isfinite(value) else None for end, value in self.interval._asdict().items()}
        return {**asdict(self.claim), **ends, "verdict": self.verdict}

    def __str__(self) -> str:
        return f"{self.claim.name}: {self.verdict}. {self.claim.text} ({self._numbers()})"

    def _numbers(self) -> str:
        def show(value: float) -> str:
            return format(value, self.claim.unit)

        side = "above" if self.claim.above is not None else "below"
        ours = f"{show(self.interval.mean)}, 95 % interval {show(self.interval.low)} to {show(self.interval.high)}"
        return f"claimed {side} {show(self.claim.threshold)}; ours {ours}, n = {self.interval.n}" + (
            f"; paper {self.claim.paper}" if self.claim.paper else ""
        )

    def _html(self) -> str:
        kind = "control" if self.claim.control else "claim"
        return (
            f'<div class="verdict verdict-{self.verdict}" id="claim-{html.escape(self.claim.name)}">'
            f'<span class="badge">{self.verdict}</span> <b>{kind} {html.escape(self.claim.name)}</b>: '
            f"{html.escape(self.claim.text)}<br><small>{html.escape(self._numbers())}</small></div>"
        )


def judge(claim: Claim, interval: Interval) -> Verdict:
    """The verdict on `claim`, shown in the notebook with its record in the output's metadata.

    `reproduced` if the whole interval lies on the claimed side of the threshold, `contradicted` if it lies wholly on
    the other; `inconclusive` if it straddles or stands on fewer than three values. Raises ValueError for NaN.
    """
    if any(math.isnan(value) for value in interval[:3]):
        raise ValueError(f"claim {claim.name}: the measurement is NaN, which is an error and no verdict")
    low, high = interval.low - claim.threshold, interval.high - claim.threshold
    if claim.below is not None:
        low, high = -high, -low
    if interval.n < 3 or low <= 0 <= high:
        word = "inconclusive"
    else:
        word = "reproduced" if low > 0 else "contradicted"
    verdict = Verdict(claim, interval, word)
    _show(verdict)
    return verdict


def _show(verdict: Verdict) -> None:
    from IPython.display import display

    display(
        {"text/plain": str(verdict), "text/html": verdict._html()}, raw=True, metadata={"studybook": verdict.record}
    )
