"""Numbers onto axes. Nothing is computed here: every function draws what it is given and returns the axes."""

from collections.abc import Mapping, Sequence

import matplotlib as mpl
import seaborn as sns
import torch
from jaxtyping import Float, Int, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from studybook.calibration import Bins
from studybook.stats import Interval


def style() -> None:
    """The book's look: sharp figures on white, a palette that color-blind readers can tell apart."""
    sns.set_theme("notebook", "whitegrid", "colorblind", rc={"savefig.facecolor": "white", "figure.facecolor": "white"})
    mpl.rcParams.update({"figure.dpi": 150, "figure.constrained_layout.use": True, "axes.titlesize": "medium"})
    mpl.rcParams["svg.hashsalt"] = "studybook"  # the same figure, the same file


def figure(width: float, height: float) -> Figure:
    """An empty figure in the book's look that belongs to no notebook; sizes in inches."""
    style()
    return Figure(figsize=(width, height), layout="constrained")


def explorer(name: str, data: Mapping[str, object]) -> None:
    """A figure that moves in the published book, where `name`'s script draws `data` and readers change it.

    Here it is a line of text. Tensors become lists of five significant digits.
    """
    from IPython.display import display

    text = f"In the published book a figure that moves stands here ({name})."
    display({"text/plain": text}, raw=True, metadata={"studybook-explorer": {"name": name, "data": _plain(data)}})


def _plain(value: object) -> object:
    if isinstance(value, Tensor):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(part) for part in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def reliability(ax: Axes, bins: Bins, title: str) -> Axes:
    """Reliability diagram of one network: accuracy per confidence bin, and the gap to the diagonal.

    Empty bins are left out; a bar's opacity grows with the share of examples in its bin.
    """
    width = 1 / len(bins.count)
    left = width * torch.arange(len(bins.count))
    seen = bins.count > 0
    share = bins.count / bins.count.max()
    blue, red = sns.color_palette("colorblind")[0], sns.color_palette("colorblind")[3]
    for at, accuracy, confidence, weight in zip(
        *(part[seen].tolist() for part in (left, bins.accuracy, bins.confidence, share)), strict=True
    ):
        ax.bar(at, accuracy, width, align="edge", color=blue, alpha=0.35 + 0.65 * weight, edgecolor="white")
        ax.bar(
            at, confidence - accuracy, width, accuracy, align="edge", color=red, alpha=0.35, hatch="//", edgecolor=red
        )
    ax.plot([0, 1], [0, 1], color="black", linewidth=1, linestyle="--")
    ax.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="accuracy", title=title, aspect="equal")
    return ax


def counts(ax: Axes, bins: Bins, title: str) -> Axes:
    """Confidence histogram of one network: the share of examples in each bin."""
    width = 1 / len(bins.count)
    left = (width * torch.arange(len(bins.count))).tolist()
    ax.bar(left, (bins.count / bins.count.sum()).tolist(), width, align="edge", edgecolor="white")
    ax.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="share of images", title=title)
    return ax


def band(
    ax: Axes,
    x: Sequence[float | int | str],
    members: Float[Tensor, "E X"],
    label: str,
    color: int = 0,
    linestyle: str = "-",
) -> Axes:
    """Mean over members as a line, their range from lowest to highest as a band; `color` counts in the palette."""
    shade = sns.color_palette("colorblind")[color]
    ax.plot(x, members.mean(0), label=label, color=shade, linestyle=linestyle, marker="o" if len(x) < 12 else None)
    ax.fill_between(x, members.amin(0), members.amax(0), color=shade, alpha=0.2, linewidth=0)
    return ax


def photo(ax: Axes, pixels: UInt8[Tensor, "C H W"], title: str, color: int | None = None) -> Axes:
    """One picture without ticks, grey or in color, with a frame in a color of the palette, if one is given."""
    ax.imshow(pixels.permute(1, 2, 0).squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=255)
    ax.set(xticks=[], yticks=[])
    ax.grid(False)
    ax.set_title(title, fontsize="x-small")
    for spine in ax.spines.values():
        spine.set(visible=color is not None, linewidth=3)
        if color is not None:
            spine.set_color(sns.color_palette("colorblind")[color])
    return ax


def attribution(
    ax: Axes, values: Float[Tensor, "H W"], limit: float, title: str, pixels: UInt8[Tensor, "C H W"] | None = None
) -> Axes:
    """A signed map: red speaks for the class, blue against, full at `limit`, which maps to be compared share.

    With `pixels` it lies over the picture in grey, the more solid the larger it is; else on white.
    """
    if pixels is not None:
        ax.imshow(pixels.double().mean(0).numpy(), cmap="gray", vmin=0, vmax=255)
    solid = (values.abs() / limit).clamp(max=1).double()
    ax.imshow(
        values.numpy(), cmap="vlag", vmin=-limit, vmax=limit, alpha=None if pixels is None else solid.sqrt().numpy()
    )
    ax.set(xticks=[], yticks=[])
    ax.grid(False)
    ax.set_title(title, fontsize="x-small")
    return ax


def attribution_scale(axes: Sequence[Axes], limit: float, label: str, signed: bool = True) -> None:
    """The color scale that the maps on `axes` share; without `signed` the half for the class alone."""
    scale = mpl.cm.ScalarMappable(mpl.colors.Normalize(-limit, limit), "vlag")
    bar = axes[0].figure.colorbar(scale, ax=list(axes), label=label, shrink=0.8)
    bar.ax.set_ylim(-limit if signed else 0, limit)


def heatmap(
    ax: Axes, values: Float[Tensor, "Y X"], rows: Sequence[str], columns: Sequence[str], limit: float | None = None
) -> Axes:
    """One colored cell per value, first row on top. With `limit`, red above zero and blue below, full at the limit,
    and the numbers written in; without, bright for large values. Empty `rows` and `columns` leave the axis bare.
    """
    scale = {"cmap": "viridis"} if limit is None else {"cmap": "vlag", "vmin": -limit, "vmax": limit}
    sns.heatmap(
        values.numpy(),
        ax=ax,
        cbar=False,
        xticklabels=columns or False,
        yticklabels=rows or False,
        linewidths=0.5,
        annot=values.numpy().round(2) + 0.0 if limit is not None else None,  # + 0.0: no "-0.00"
        fmt=".2f",
        annot_kws={"fontsize": "x-small"},
        rasterized=values.numel() > 400,  # so many cells as vectors weigh more than as pixels
        **scale,
    )
    ax.tick_params(axis="y", rotation=0)
    return ax


def regions(
    ax: Axes,
    x: Float[Tensor, " X"],
    y: Float[Tensor, " Y"],
    decided: Float[Tensor, "Y X"],
    points: Float[Tensor, "N 2"],
    labels: Int[Tensor, " N"],
) -> Axes:
    """A classifier's decisions (1 or -1) over a plane as two pale regions, and points of classes 0 and 1 on them."""
    colors = [sns.color_palette("colorblind")[i] for i in (0, 1)]
    ax.contourf(x, y, decided, levels=[-2, 0, 2], colors=colors, alpha=0.25)
    for label, color, marker in zip((0, 1), colors, "o^", strict=True):
        ax.scatter(*points[labels == label].T, s=8, color=color, marker=marker, linewidth=0)
    ax.set(xlim=(float(x[0]), float(x[-1])), ylim=(float(y[0]), float(y[-1])), aspect="equal")
    ax.grid(False)
    return ax


def intervals(ax: Axes, names: Sequence[str], found: Sequence[Interval], threshold: float | None = None) -> Axes:
    """One row per name, first on top: the mean as a dot, the interval as a bar, the threshold as a dashed line."""
    for row, one in enumerate(found):
        ax.plot([one.low, one.high], [row, row], color=sns.color_palette("colorblind")[0], linewidth=2)
        ax.plot(one.mean, row, "o", color=sns.color_palette("colorblind")[0])
    if threshold is not None:
        ax.axvline(threshold, color="black", linewidth=1, linestyle="--")
    ax.set_yticks(range(len(names)), names)
    ax.invert_yaxis()
    return ax


def points(
    ax: Axes,
    x: Float[Tensor, " N"],
    y: Float[Tensor, " N"],
    names: Sequence[str],
    kinds: Sequence[str],
    told: Mapping[str, tuple[float | int, float | int]],
) -> Axes:
    """One dot per named thing (a network), colored and marked by its kind, most frequent kinds first.

    `told` are the names to write beside their dots, each with how far to the right and up, in points of the page.
    """
    found = sorted(set(kinds), key=lambda kind: (-list(kinds).count(kind), kind))
    for color, kind in enumerate(found):
        rows = torch.tensor([one == kind for one in kinds])
        shade, marker = sns.color_palette("colorblind")[color % 10], "osD^vPX*<>"[color % 10]
        ax.scatter(x[rows], y[rows], s=16, marker=marker, color=shade, alpha=0.75, linewidth=0, label=kind)
    for name, offset in told.items():
        at = list(names).index(name)
        right = "left" if offset[0] >= 0 else "right"
        ax.annotate(
            name,
            (float(x[at]), float(y[at])),
            offset,
            textcoords="offset points",
            ha=right,
            va="center",
            fontsize="x-small",
            arrowprops={"arrowstyle": "-", "color": "gray", "linewidth": 0.5},
        )
    if len(found) > 1:
        ax.legend(fontsize="x-small", frameon=True)
    return ax


def accuracy_axes(ax: Axes, x: tuple[float, float], y: tuple[float, float]) -> Axes:
    """Both axes as log-odds of accuracies, from the first to the second, with ticks in percent; a line marks y = x."""
    ticks = (0.001, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999)
    ax.set(xscale="logit", yscale="logit", xlim=x, ylim=y)
    for axis, (low, high) in ((ax.xaxis, x), (ax.yaxis, y)):
        axis.set_major_locator(mpl.ticker.FixedLocator([t for t in ticks if low <= t <= high]))
        axis.set_minor_locator(mpl.ticker.NullLocator())
        axis.set_major_formatter(mpl.ticker.PercentFormatter(1, 0 if low >= 0.01 and high <= 0.99 else 1))
    both = [max(x[0], y[0]), min(x[1], y[1])]
    if both[0] < both[1]:
        ax.plot(both, both, color="black", linewidth=1, linestyle="--", zorder=0)
    return ax


def efficiency(
    ax: Axes,
    counts: Sequence[int],
    curves: Mapping[str, Sequence[float]],
    measured: Mapping[str, Mapping[int, float]],
    wanted: float,
) -> Axes:
    """Parallel efficiency over numbers of workers: predicted curves, and measured points of the same name."""
    for color, name in enumerate(curves):
        shade = sns.color_palette("colorblind")[color]
        ax.plot(counts, curves[name], color=shade, label=name)
        ax.plot(list(measured.get(name, {})), list(measured.get(name, {}).values()), "o", color=shade, markersize=5)
    ax.axhline(wanted, color="black", linewidth=1, linestyle="--")
    ax.set(xscale="log", ylim=(0, 1.05), xlabel="workers", ylabel="efficiency")
    ax.legend(title="a case takes", frameon=True)
    return ax


def ratios(ax: Axes, names: Sequence[str], spans: Sequence[tuple[float, float, float, float]]) -> Axes:
    """One row per name, first on top: a ratio as a dot, its least and greatest as a bar, the wanted one (or NaN) as a
    tick; the axis is logarithmic, and a line marks 1.
    """
    for row, (middle, least, greatest, wanted) in enumerate(spans):
        ax.plot([least, greatest], [row, row], color=sns.color_palette("colorblind")[0], linewidth=2)
        ax.plot(middle, row, "o", color=sns.color_palette("colorblind")[0])
        ax.plot([wanted, wanted], [row - 0.35, row + 0.35], color=sns.color_palette("colorblind")[3], linewidth=2)
    ax.axvline(1, color="black", linewidth=1, linestyle="--")
    ax.set_yticks(range(len(names)), names, fontsize="x-small")
    ax.set(xscale="log", xlabel="their time over ours")
    ax.xaxis.set_major_formatter("{x:g}")
    ax.invert_yaxis()
    return ax


def scaling(ax: Axes, title: str, axis: str, series: Mapping[str, Sequence[tuple[int | float, float]]]) -> Axes:
    """Seconds over a size on logarithmic axes, one line of points for each of `series`."""
    for color, (name, points) in enumerate(series.items()):
        sizes, seconds = zip(*points, strict=True)
        ax.plot(sizes, seconds, "o-", color=sns.color_palette("colorblind")[color], label=name, markersize=4)
    ax.set(xscale="log", yscale="log", title=title, xlabel=axis, ylabel="seconds")
    ax.title.set_fontsize("small")
    ax.tick_params(labelsize="x-small")
    ax.legend(fontsize="xx-small", frameon=True)
    return ax
