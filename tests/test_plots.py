import matplotlib as mpl

mpl.use("agg")

import matplotlib.pyplot as plt
import pytest
import torch

from studybook import plots
from studybook.calibration import Bins
from studybook.stats import Interval


@pytest.fixture
def ax():
    figure, axes = plt.subplots()
    yield axes
    plt.close(figure)


def test_reliability_bars_stand_where_the_bins_are_and_empty_bins_are_left_out(ax):
    count = torch.tensor([0.0, 2, 0, 6])
    plots.reliability(ax, Bins(count, torch.tensor([0.0, 0.5, 0, 0.9]), torch.tensor([0.0, 0.4, 0, 0.95])), "title")
    bars = [(p.get_x(), p.get_y(), p.get_width(), p.get_height()) for p in ax.patches]
    assert bars[0] == pytest.approx((0.25, 0.0, 0.25, 0.5))
    assert bars[1] == pytest.approx((0.25, 0.5, 0.25, -0.1))
    assert bars[2] == pytest.approx((0.75, 0.0, 0.25, 0.9))
    assert len(bars) == 4
    assert ax.patches[0].get_alpha() < ax.patches[2].get_alpha() == 1.0
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_title()) == ("confidence", "accuracy", "title")


def test_counts_are_shares(ax):
    plots.counts(ax, Bins(torch.tensor([1.0, 3]), torch.zeros(2), torch.zeros(2)), "")
    assert [p.get_height() for p in ax.patches] == pytest.approx([0.25, 0.75])


def test_a_band_runs_from_the_lowest_to_the_highest_member(ax):
    plots.band(ax, [1, 2], torch.tensor([[0.0, 1.0], [2.0, 5.0]]), "name")
    assert ax.lines[0].get_ydata().tolist() == [1.0, 3.0]
    corners = ax.collections[0].get_paths()[0].vertices
    assert {tuple(c) for c in corners.tolist()} >= {(1.0, 0.0), (1.0, 2.0), (2.0, 1.0), (2.0, 5.0)}


def test_intervals_are_drawn_first_on_top(ax):
    plots.intervals(ax, ["a", "b"], [Interval(0.5, 0.4, 0.6, 3), Interval(0.2, 0.1, 0.3, 3)], threshold=0.45)
    assert ax.lines[0].get_xdata() == pytest.approx([0.4, 0.6])
    assert ax.lines[2].get_xdata() == pytest.approx([0.1, 0.3])
    assert ax.lines[4].get_xdata() == pytest.approx([0.45, 0.45])
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a", "b"]
    assert ax.yaxis_inverted()


def test_a_photo_keeps_its_colors_and_gets_a_frame(ax):
    pixels = torch.tensor([[[255, 0]], [[0, 255]], [[0, 0]]], dtype=torch.uint8)  # red, green
    plots.photo(ax, pixels, "name", color=2)
    assert ax.images[0].get_array().tolist() == [[[255, 0, 0], [0, 255, 0]]]
    assert ax.get_title() == "name"
    assert len(ax.get_xticks()) == len(ax.get_yticks()) == 0
    assert all(s.get_visible() and s.get_linewidth() == 3 for s in ax.spines.values())


def test_a_grey_photo_is_drawn_from_black_to_white_whatever_it_holds(ax):
    plots.photo(ax, torch.full((1, 2, 2), 200, dtype=torch.uint8), "")
    assert ax.images[0].get_clim() == (0, 255)
    assert ax.images[0].get_cmap().name == "gray"
    assert not any(s.get_visible() for s in ax.spines.values())


def test_a_heatmap_shows_its_values_first_row_on_top_with_the_limit_as_full_color(ax):
    plots.heatmap(ax, torch.tensor([[0.5, -0.001], [-0.5, -0.25]]), ["a", "b"], ["x", "y"], limit=0.5)
    (mesh,) = ax.collections
    assert mesh.get_array().flatten().tolist() == pytest.approx([0.5, -0.001, -0.5, -0.25])
    assert mesh.get_clim() == (-0.5, 0.5)
    assert [t.get_text() for t in ax.texts] == ["0.50", "0.00", "-0.50", "-0.25"]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["a", "b"]
    assert ax.yaxis_inverted()


def test_a_heatmap_without_limit_has_neither_numbers_nor_ticks(ax):
    plots.heatmap(ax, torch.tensor([[0.0, 7.0]]), [], [])
    assert ax.collections[0].get_clim() == (0.0, 7.0)
    assert not ax.texts
    assert not ax.get_xticks().size + ax.get_yticks().size


def test_regions_put_each_class_on_its_own_side(ax):
    side = torch.tensor([-1.0, 0.0, 1.0])
    points, labels = torch.tensor([[-0.5, 0.1], [0.5, 0.2], [0.6, 0.3]]), torch.tensor([0, 1, 1])
    plots.regions(ax, side, side, torch.tensor([[-1.0, -1.0, 1.0]]).expand(3, 3), points, labels)
    first, second = (c.get_offsets() for c in ax.collections[-2:])
    assert first.tolist() == [pytest.approx([-0.5, 0.1])]
    assert len(second) == 2
    regions = ax.collections[0]
    inside = [path.get_extents() for path in regions.get_paths()]
    assert inside[0].x0 == pytest.approx(-1)
    assert inside[1].x1 == pytest.approx(1)
    assert inside[0].x1 == pytest.approx(inside[1].x0) == pytest.approx(0.5)


def test_efficiency_shows_curves_and_measured_points_of_the_same_name(ax):
    plots.efficiency(ax, [1, 10, 100], {"1 s": [1.0, 0.9, 0.5], "9 s": [1.0, 1.0, 0.9]}, {"9 s": {10: 0.95}}, 0.8)
    first, none, second, points, wanted = ax.lines
    assert first.get_ydata().tolist() == [1.0, 0.9, 0.5]
    assert list(none.get_xdata()) == []
    assert (list(points.get_xdata()), list(points.get_ydata())) == ([10], [0.95])
    assert points.get_color() == second.get_color()
    assert list(wanted.get_ydata()) == [0.8, 0.8]
    assert ax.get_xscale() == "log"


def test_ratios_show_a_dot_a_bar_and_a_tick_in_each_row(ax):
    plots.ratios(ax, ["a", "b"], [(2.0, 1.5, 3.0, 4.0), (0.5, 0.4, 0.6, float("nan"))])
    bar, dot, wanted = ax.lines[:3]
    assert (list(bar.get_xdata()), list(bar.get_ydata())) == ([1.5, 3.0], [0, 0])
    assert (list(dot.get_xdata()), list(wanted.get_xdata())) == ([2.0], [4.0, 4.0])
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a", "b"]
    assert ax.get_xscale() == "log"
    assert ax.yaxis_inverted()


def test_scaling_shows_each_series_on_logarithmic_axes(ax):
    plots.scaling(ax, "neighbors", "N", {"ours": [(10, 0.1), (100, 1.0)], "theirs": [(10, 0.2)]})
    assert [list(line.get_ydata()) for line in ax.lines] == [[0.1, 1.0], [0.2]]
    assert (ax.get_xscale(), ax.get_yscale(), ax.get_xlabel()) == ("log", "log", "N")
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["ours", "theirs"]


def test_points_are_colored_by_kind_and_the_told_ones_are_named(ax):
    x, y = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.4, 0.5, 0.6])
    plots.points(ax, x, y, ["a", "b", "c"], ["rare", "usual", "usual"], {"b": (5, 5)})
    usual, rare = (group.get_offsets().tolist() for group in ax.collections)
    assert [pair[0] for pair in usual] == pytest.approx([0.2, 0.3])
    assert rare[0] == pytest.approx([0.1, 0.4])
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["usual", "rare"]
    assert [(text.get_text(), text.xy) for text in ax.texts] == [("b", pytest.approx((0.2, 0.5)))]


def test_accuracy_axes_are_log_odds_in_percent_with_the_diagonal(ax):
    plots.accuracy_axes(ax, (0.4, 0.98), (0.15, 0.97))
    assert (ax.get_xscale(), ax.get_yscale()) == ("logit", "logit")
    assert ax.lines[0].get_xdata().tolist() == ax.lines[0].get_ydata().tolist() == [0.4, 0.97]
    ax.figure.canvas.draw()
    assert [tick.get_text() for tick in ax.get_xticklabels()][:3] == ["50%", "70%", "80%"]


def test_an_attribution_is_red_for_and_blue_against_full_at_the_limit(ax):
    values = torch.tensor([[2.0, 0.0], [-1.0, 4.0]])
    plots.attribution(ax, values, 2.0, "cat", torch.full((3, 2, 2), 100, dtype=torch.uint8))
    photo, over = ax.images
    assert photo.get_array().tolist() == [[100, 100], [100, 100]]
    assert over.get_clim() == (-2, 2)
    assert over.get_alpha().round(3).tolist() == [[1, 0], [0.707, 1]]
    assert over.cmap(over.norm(2.0))[0] > over.cmap(over.norm(2.0))[2]
    plots.attribution_scale([ax], 2.0, "share")
    assert ax.figure.axes[1].get_ylabel() == "share"
    assert ax.figure.axes[1].get_ylim() == (-2, 2)
    plots.attribution_scale([ax], 2.0, "share", signed=False)
    assert ax.figure.axes[2].get_ylim() == (0, 2)


def test_an_attribution_alone_is_drawn_solid(ax):
    plots.attribution(ax, torch.tensor([[2.0, 0.0]]), 2.0, "cat")
    assert len(ax.images) == 1
    assert ax.images[0].get_alpha() is None
