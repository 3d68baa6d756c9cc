"""The result of the demo: a table, a picture, and where to look further."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from replay_trainer.job.evaluation import TARGET, forgetting
from replay_trainer.job.metrics import MetricsFile

_PROXY: Final = """\
Below zero ({}) nothing more was kept. This model was instructed after its pretraining, so the text
is a proxy for what it must not forget, and to learn plain text of any kind lowers the loss on it. The distance from the
base model tells more: how much the predictions of the tuned model differ from its own."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """Measurements of one job: held-out losses by step and domain, nats per token.

    Attributes:
        distance: from the base model at the end, see `replay_service.demo.distance`.
    """

    name: str
    evaluations: dict[int, dict[str, float]]
    num_rehearsed: int
    num_trained: int
    distance: float

    @classmethod
    def read(cls, name: str, output: Path, global_batch_size: int, distance: float) -> "Outcome":
        metrics = MetricsFile(output / "metrics.jsonl")
        steps = [line for line in metrics.lines() if line["kind"] == "step"]
        num_rehearsed = sum(line["num_rehearsed"] for line in steps)
        return cls(name, metrics.evaluations(), num_rehearsed, len(steps) * global_batch_size, distance)

    @property
    def base(self) -> dict[str, float]:
        return self.evaluations[0]

    @property
    def last(self) -> dict[str, float]:
        return self.evaluations[max(self.evaluations)]

    def forgetting(self) -> dict[str, float]:
        """By domain, at the end: nats per token."""
        return forgetting(self.last, self.base)

    def mean_forgetting(self, step: int | None = None) -> float:
        """The mean over the domains, at `step` or at the end: nats per token."""
        by_domain = forgetting(self.evaluations[max(self.evaluations) if step is None else step], self.base)
        return sum(by_domain.values()) / len(by_domain)


def result_table(outcomes: Sequence[Outcome]) -> Table:
    """The outcomes side by side."""
    table = Table(title="What the model forgot, in nats per token on held-out text", title_justify="left")
    table.add_column("")
    for outcome in outcomes:
        table.add_column(outcome.name, justify="right")
    table.add_row("forgetting, mean", *(f"{each.mean_forgetting():+.3f}" for each in outcomes), style="bold")
    for domain in outcomes[0].forgetting():
        table.add_row(f"  {domain}", *(f"{each.forgetting()[domain]:+.3f}" for each in outcomes))
    table.add_row("distance from base", *(f"{each.distance:.3f}" for each in outcomes), style="bold")
    table.add_row("target loss", *(f"{each.base[TARGET]:.3f} -> {each.last[TARGET]:.3f}" for each in outcomes))
    table.add_row("rehearsal share", *(f"{each.num_rehearsed / each.num_trained:.2%}" for each in outcomes))
    return table


def in_words(outcomes: Sequence[Outcome]) -> str:
    """What the table says, and what it does not."""
    said = "; ".join(
        f"{each.name}: forgetting {each.mean_forgetting():+.3f}, distance {each.distance:.3f}" for each in outcomes
    )
    below = dict.fromkeys(domain for each in outcomes for domain, nats in each.forgetting().items() if nats < 0)
    return f"{said}.\n{_PROXY.format(', '.join(below))}" if below else f"{said}."


def draw(path: Path, outcomes: Sequence[Outcome], strata: list[dict[str, Any]]) -> None:
    """The forgetting curves, and the damage rate of each stratum."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (curves, bars) = pyplot.subplots(1, 2, figsize=(12, 4.5), width_ratios=(1, 1.3), layout="constrained")
    for outcome, color in zip(outcomes, ("#c0392b", "#7f8c8d", "#2471a3"), strict=True):
        steps = sorted(outcome.evaluations)
        curves.plot(steps, [outcome.mean_forgetting(s) for s in steps], "o-", color=color, label=outcome.name)
    curves.axhline(0, color="grey", linewidth=0.8)
    curves.set(title="Forgetting, mean over domains", xlabel="step", ylabel="nats per token")
    curves.legend(frameon=False)
    _draw_rates(bars, strata)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _draw_rates(axes: Any, strata: list[dict[str, Any]]) -> None:
    domains = list(dict.fromkeys(each["domain"] for each in strata))
    num_quantiles = 1 + max(each["quantile"] for each in strata)
    for quantile in range(num_quantiles):
        rates = [each["damage_rate"] or 0.0 for each in strata if each["quantile"] == quantile]
        places = [index + (quantile - (num_quantiles - 1) / 2) * 0.8 / num_quantiles for index in range(len(domains))]
        shade = str(0.75 - 0.6 * quantile / max(1, num_quantiles - 1))
        axes.bar(places, rates, 0.75 / num_quantiles, color=shade, label=f"q{quantile}")
    axes.set_xticks(range(len(domains)), domains)
    axes.set(title="Estimated damage of each stratum", ylabel="rise of the loss, nats per token")
    axes.margins(y=0.25)
    axes.legend(frameon=False, ncols=num_quantiles, title="base-loss quantile", loc="upper center")


def say_where_to_look(console: Console, folder: Path, base_url: str, run: str, *, running: bool) -> None:
    console.print(f"\npicture  {folder / 'forgetting.png'}", soft_wrap=True)
    console.print(f"metrics  {folder}/*/metrics.jsonl", soft_wrap=True)
    if running:
        console.print("\nThe service is up until Ctrl-C:")
    else:
        port = base_url.rpartition(":")[2]
        console.print("\nTo look at the sampler's statistics, serve the folder again, and open its page or ask it:")
        console.print(f"  replay-service serve --root {folder} --port {port}", soft_wrap=True)
    console.print(f"  {base_url}/runs/{run}", soft_wrap=True)
    console.print(f"  curl -s {base_url}/v1/runs/{run}/stats", soft_wrap=True)
    console.print(f"  curl -s {base_url}/v1/runs/{run}/strata", soft_wrap=True)
    console.print(f"  {base_url}/docs", soft_wrap=True)
