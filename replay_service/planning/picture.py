"""The picture of a plan: forgetting by ratio with the law's curves, and measured against fitted. Needs matplotlib."""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from replay_service.errors import UnusableRuns
from replay_service.planning.plan import Plan

matplotlib.use("Agg")


def check_path(path: Path) -> None:
    """Raises UnusableRuns when no picture can be written there, so that it is known before the laws are fitted."""
    from matplotlib.backend_bases import FigureCanvasBase

    if path.suffix[1:] not in FigureCanvasBase.get_supported_filetypes():
        raise UnusableRuns(f"{path} has no ending of a picture; name a file that ends in .png, .svg or .pdf")
    if not path.parent.is_dir():
        raise UnusableRuns(f"there is no folder {path.parent} for the picture; make it first")


def draw(plan: Plan, path: Path) -> None:
    """Draw a plan into a file of which `check_path` says that it can be written; its ending says the format."""
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(12, 5), layout="constrained")
    _ratios(left, plan)
    _fit(right, plan)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _ratios(axes: Any, plan: Plan) -> None:
    """Runs and curves; the curve to plan for with its interval; the budget."""
    runs, fit = plan.forgetting.law.runs, plan.forgetting
    ratio = np.linspace(0.0, 1.05 * float(np.max(runs.weighted_ratio)), 200)
    points = axes.scatter(
        runs.weighted_ratio, runs.forgetting, c=np.log10(runs.num_parameters), cmap="viridis", s=18, zorder=3
    )
    axes.figure.colorbar(points, ax=axes, label="log10 of the model's parameters")
    curves = np.array([fit.forgetting(plan.num_parameters, plan.target_tokens, each) for each in ratio])
    low, high = np.quantile(curves[:, 1:], [0.025, 0.975], axis=1)
    axes.fill_between(ratio, low, high, color="C3", alpha=0.2, linewidth=0)
    label = f"N = {plan.num_parameters:.3g}, D = {plan.target_tokens:.3g}"
    axes.plot(ratio, curves[:, 0], color="C3", label=label)
    axes.axhline(plan.settings.budget_nats, color="black", linestyle=":", linewidth=1, label="budget")
    axes.set(yscale="log", xlabel="rehearsal weight x injection ratio", ylabel="forgetting, nats per token")
    axes.legend(frameon=False, fontsize="small")


def _fit(axes: Any, plan: Plan) -> None:
    law = plan.forgetting.law
    fitted = law.runs.forgetting * np.exp(law.differences(plan.forgetting.draws[0]))
    ends = [min(fitted.min(), law.runs.forgetting.min()), max(fitted.max(), law.runs.forgetting.max())]
    axes.plot(ends, ends, color="black", linewidth=1)
    axes.scatter(fitted, law.runs.forgetting, s=18)
    axes.set(xscale="log", yscale="log", xlabel="fitted forgetting, nats per token", ylabel="measured, nats per token")
