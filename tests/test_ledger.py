import math

import pytest

from studybook.ledger import Claim, judge
from studybook.stats import Interval


@pytest.fixture(autouse=True)
def shown(monkeypatch):
    """What a notebook would show, as (data, metadata)."""
    outputs = []
    monkeypatch.setattr("IPython.display.display", lambda data, raw, metadata: outputs.append((data, metadata)))
    return outputs


@pytest.mark.parametrize(
    ("side", "low", "high", "n", "verdict"),
    [
        ({"above": 0.5}, 0.6, 0.8, 3, "reproduced"),
        ({"above": 0.5}, 0.1, 0.4, 3, "contradicted"),
        ({"above": 0.5}, 0.4, 0.6, 3, "inconclusive"),
        ({"above": 0.5}, 0.6, 0.8, 2, "inconclusive"),
        ({"above": 0.5}, 0.5, 0.8, 3, "inconclusive"),
        ({"below": 0.5}, 0.1, 0.4, 3, "reproduced"),
        ({"below": 0.5}, 0.6, 0.8, 3, "contradicted"),
        ({"below": 0.5}, 0.4, 0.6, 3, "inconclusive"),
        ({"above": 0.5}, -math.inf, math.inf, 1, "inconclusive"),
    ],
)
def test_the_verdict_follows_from_interval_side_and_members(side, low, high, n, verdict):
    found = judge(Claim("c", "it is so", **side), Interval((low + high) / 2 if n > 1 else 0.0, low, high, n))
    assert found.verdict == verdict


def test_a_verdict_carries_its_record_in_the_outputs_metadata(shown):
    claim = Claim("c", "a < b & c", above=0.0, paper="7 %", control=True, unit=".1%")
    judge(claim, Interval(0.1, 0.05, 0.15, 4))
    data, metadata = shown[0]
    record = metadata["studybook"]
    assert record["verdict"] == "reproduced"
    assert (record["mean"], record["low"], record["high"], record["n"]) == (0.1, 0.05, 0.15, 4)
    assert (record["name"], record["paper"], record["control"], record["above"]) == ("c", "7 %", True, 0.0)
    assert "claimed above 0.0%; ours 10.0%" in data["text/plain"]
    assert "a &lt; b &amp; c" in data["text/html"]


def test_an_interval_without_ends_is_null_in_the_record(shown):
    judge(Claim("c", "it is so", above=0.0), Interval(1.0, -math.inf, math.inf, 1))
    record = shown[0][1]["studybook"]
    assert record["low"] is None
    assert record["high"] is None


def test_nan_is_an_error_and_no_verdict():
    with pytest.raises(ValueError, match="claim c: the measurement is NaN"):
        judge(Claim("c", "it is so", above=0.0), Interval(math.nan, 0.0, 1.0, 5))


def test_a_claim_without_exactly_one_threshold_is_refused():
    with pytest.raises(ValueError, match="claim c: give either above or below"):
        Claim("c", "it is so")
    with pytest.raises(ValueError, match="give either above or below, got above=1.0, below=2.0"):
        Claim("c", "it is so", above=1.0, below=2.0)
    with pytest.raises(ValueError, match="must be a finite number, got nan"):
        Claim("c", "it is so", above=math.nan)
