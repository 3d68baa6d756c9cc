"""The pictures of a study: the frontier, forgetting by domain, flips both ways. Needs matplotlib."""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from replay_trainer.study.analysis import Analysis
from replay_trainer.study.outcomes import Paired

matplotlib.use("Agg")

_REFERENCE = "#7f8c8d"


def draw_all(folder: Path, paired: Paired, analysis: Analysis) -> tuple[Path, ...]:
    """Draw all pictures as PNG files; gives their paths."""
    from matplotlib import pyplot

    drawn = []
    for name, draw, size in (
        ("frontier", _frontier, (9.0, 6.5)),
        ("domains", _domains, (1.5 + 0.55 * len(paired.domains), 1.8 + 0.28 * len(paired.arms))),
        ("flips", _flips, (9.0, 1.5 + 0.28 * len(paired.arms))),
    ):
        figure, axes = pyplot.subplots(figsize=size, layout="constrained")
        draw(axes, paired, analysis)
        path = folder / f"{name}.png"
        figure.savefig(path, dpi=120)
        pyplot.close(figure)
        drawn.append(path)
    return tuple(drawn)


def _frontier(axes: Any, paired: Paired, analysis: Analysis) -> None:
    """Target loss and forgetting of each arm with its intervals, and the curve of uniform cross-entropy."""
    reference = sorted((each for each in analysis.arms if each.is_reference), key=lambda each: each.rows)
    if analysis.has_frontier:
        points = [(each.target_loss.value, each.forgetting.value) for each in reference]
        axes.plot(*zip(*points, strict=True), "-", color=_REFERENCE, label="uniform, cross-entropy", zorder=1)
    markers = "osD^v<>PX*hp"
    for index, arm in enumerate(analysis.arms):
        color = _REFERENCE if arm.is_reference else f"C{index % 10}"
        x, y = arm.target_loss, arm.forgetting
        errors = {
            name: [[each.value - each.low], [each.high - each.value]]
            for name, each in (("xerr", x), ("yerr", y))
            if each.is_known
        }
        marker = markers[index // 10 % len(markers)]
        axes.errorbar(x.value, y.value, fmt=marker, color=color, capsize=2, label=arm.arm, **_within(errors))
    axes.set(xlabel="target loss, nats per token", ylabel="forgetting, nats per token, mean over domains")
    axes.set_title("Lower and further left is better; bars are 95 % intervals")
    axes.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _within(errors: dict[str, list[list[float]]]) -> dict[str, list[list[float]]]:
    """A percentile interval may leave out its estimate; a bar cannot."""
    return {name: [[max(0.0, one) for one in side] for side in sides] for name, sides in errors.items()}


def _domains(axes: Any, paired: Paired, analysis: Analysis) -> None:
    """A map of forgetting: arms by domains."""
    forgetting = np.nanmean(paired.forgetting, axis=(1, 3))
    image = axes.imshow(forgetting, aspect="auto", cmap="magma_r")
    axes.set_xticks(range(len(paired.domains)), paired.domains, rotation=60, ha="right", fontsize=7)
    axes.set_yticks(range(len(paired.arms)), paired.arms, fontsize=7)
    axes.set_title("Forgetting by domain")
    axes.figure.colorbar(image, ax=axes, label="nats per token")


def _flips(axes: Any, paired: Paired, analysis: Analysis) -> None:
    """Right to wrong to the left, wrong to right to the right."""
    places = np.arange(len(paired.arms))
    flips = [100 * np.mean([each.share_of_flips() for each in row]) for row in paired.outcomes]
    gains = [100 * np.mean([each.share_of_gains() for each in row]) for row in paired.outcomes]
    axes.barh(places, [-each for each in flips], color="#c0392b", label="right to wrong, % of what was right")
    axes.barh(places, gains, color="#2471a3", label="wrong to right, % of what was wrong")
    axes.set_yticks(places, paired.arms, fontsize=7)
    axes.invert_yaxis()
    axes.axvline(0, color="black", linewidth=0.8)
    axes.xaxis.set_major_formatter(lambda place, _: f"{abs(place):g}")
    axes.set(xlabel="% of predictions", title="Flips both ways on held-out pretraining text")
    axes.figure.legend(frameon=False, fontsize=7, loc="outside lower center", ncols=2)
