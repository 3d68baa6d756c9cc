"""What commands show of a run: plain text in columns, with colour where it says that something is to be looked at."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from replay_service.cli.operators.words import ago, interval, percent, signed, span, visible

_STATE_STYLES: Final = {"running": "green", "stale": "yellow", "damaged": "red"}
_BAR_WIDTH: Final = 10


def table_of(head: Sequence[str], rows: Iterable[Sequence[str | Text]], right: Sequence[str] = ()) -> Table:
    """A table without lines; columns that `right` names are flush right."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in head:
        table.add_column(name, justify="right" if name in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(visible(each)) if isinstance(each, str) else each for each in row))
    return table


def runs_table(runs: Sequence[dict[str, Any]]) -> RenderableType:
    """Runs as GET /v1/runs lists them."""
    if not runs:
        return Text("no runs")
    rows = [
        (
            each["run"],
            state_text(each["state"]),
            f"{each['next_step']:,}",
            each["config"]["injection_ratio"],
            each["config"]["policy"],
            each["corpus"],
            ago(each["last_plan_at"]),
            ago(each["last_report_at"]),
        )
        for each in runs
    ]
    head = ("run", "state", "step", "ratio", "policy", "corpus", "last plan", "last report")
    return table_of(head, rows, right=("step", "ratio"))


def corpora_table(corpora: Sequence[dict[str, Any]]) -> RenderableType:
    """Corpora as GET /v1/corpora lists them."""
    if not corpora:
        return Text("no corpora")
    rows = [
        (
            each["corpus"],
            str(each["generation"]),
            f"{each['num_samples']:,}",
            f"{each['num_tokens']:,}",
            str(len(each["domains"])),
            each["model"],
            "-" if each["ingest"] is None else _ingest(each["ingest"]),
            f"{sum(segment['num_blocks'] for segment in each['damaged_segments']):,}",
        )
        for each in corpora
    ]
    head = ("corpus", "generation", "samples", "tokens", "domains", "base model", "ingest", "damaged blocks")
    return table_of(head, rows, right=("generation", "samples", "tokens", "domains", "damaged blocks"))


def _ingest(ingest: dict[str, Any]) -> str:
    if ingest["state"] != "running":
        return str(ingest["state"])
    left = "" if ingest["seconds_left"] is None else f", {span(ingest['seconds_left'])} left"
    return f"running, {ingest['share_done']:.0%}{left}"


def state_text(state: str) -> Text:
    return Text(state, style=_STATE_STYLES.get(state, ""))


@dataclass(frozen=True, slots=True)
class RunLook:
    """A run as it was looked at.

    Attributes:
        stats: as GET .../stats gives them.
        steps_per_s: None where it is not known.
    """

    stats: dict[str, Any]
    steps_per_s: float | None = None


def run_picture(look: RunLook, most_domains: int = 8) -> RenderableType:
    """A run on a few lines: its state, its forgetting, its ratio, its reports, its domains, and what to do."""
    stats = look.stats
    lines = [_state_line(look), _forgetting_line(stats), _ratio_line(stats), _reports_line(stats)]
    if stats["last_change"] is not None:
        change = stats["last_change"]
        lines.append(Text(f"last change {visible(change['text'])}, {ago(change['at'])}"))
    parts: list[RenderableType] = [*lines, *_domains(look, most_domains)]
    for each in stats["advice"]:
        parts.append(Text(f"LOOK: {visible(each['text'])}: {visible(each['remedy'])}", style="yellow"))
    return Group(*parts)


def _state_line(look: RunLook) -> Text:
    stats = look.stats
    speed = "" if look.steps_per_s is None else f"  {look.steps_per_s:.1f}/s"
    line = Text(f"{stats['run']}  ")
    line.append(state_text(stats["state"]))
    line.append(f"  step {stats['next_step']:,}{speed}   last report {ago(stats['last_report_at'])}")
    return line


def _forgetting_line(stats: dict[str, Any]) -> Text:
    found, budget = stats["forgetting"], stats["budget_nats"]
    if found["nats"] is None:
        return Text(f"forgetting not known: {found['reason']}")
    line = Text(f"forgetting {signed(found['nats'])} {interval(found['low'], found['high'])} nats")
    if budget is not None:
        line.append(f"  budget {budget:g}")
        if found["low"] > budget:
            line.append(" OVER", style="bold red")
    line.append(f"   seen {percent(found['share_covered'])}")
    return line


def _ratio_line(stats: dict[str, Any]) -> Text:
    achieved = "" if stats["achieved_ratio"] is None else f", trained {stats['achieved_ratio']:.4g}"
    return Text(
        f"ratio {stats['injection_ratio']:.4g}{achieved}   "
        f"rows due {stats['rows_due']:,.2f}, rehearsed {stats['rows_rehearsed']:,}"
    )


def _reports_line(stats: dict[str, Any]) -> Text:
    delay = stats["report_delay"]
    usual = "" if delay["p95_s"] is None else f", within {span(delay['p95_s'])} as a rule"
    line = Text(f"reports {stats['num_reported']:,}, {stats['num_pending']:,} awaited{usual}")
    if delay["late_steps"]:
        line.append(f"   {delay['late_steps']:,} steps late", style="yellow")
    return line


def _domains(look: RunLook, most: int) -> list[RenderableType]:
    """The domains that have surely forgotten most, those of which something is known."""
    known = {name: each for name, each in look.stats["forgetting_by_domain"].items() if each["low"] is not None}
    worst = sorted(known, key=lambda name: -known[name]["low"])[:most]
    if not worst:
        return []
    shares = look.stats["shares_by_domain"]
    longest = max([1e-9, *(known[name]["nats"] for name in worst)])
    rows = [
        (
            name,
            signed(known[name]["nats"]),
            interval(known[name]["low"], known[name]["high"]),
            "#" * max(0, round(_BAR_WIDTH * known[name]["nats"] / longest)),
            f"drawn {percent(shares[name]['draw_share'])} of {percent(shares[name]['size_share'])}",
        )
        for name in worst
    ]
    table = table_of(("domain", "nats", "95 %", "", "draws, share of the corpus"), rows, right=("nats",))
    return [table, *([Text(f"and {len(known) - most} more domains")] if len(known) > most else [])]


def event_line(event: dict[str, Any]) -> Text:
    """One event of a run, or a summary of plans and reports, on one line."""
    at = "-" if event["at"] is None else event["at"][:19].replace("T", " ")
    if event["kind"] == "progress":
        step = event["last_step"]
        text = (
            f"{event['num_plans']:,} plans of {event['rows_rehearsed']:,} samples, {event['num_reports']:,} reports of "
            f"{event['rows_reported']:,}"
        )
    else:
        step, text = event["step"], visible(event["text"])
    return Text(f"{at}  {event['seq']:>8}  {event['kind']:<10}  step {step:>7,}  {text}")
