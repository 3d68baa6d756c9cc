"""`replay-service events`, `samples` and `top`: what happened to a run, what it rehearsed, how it goes now."""

import time
from collections import deque
from collections.abc import Iterator
from typing import Annotated, Any, Final

import typer
from rich.console import Group, RenderableType
from rich.text import Text

from replay_service.cli.operators.client import DEFAULT_URL, ServiceClient
from replay_service.cli.operators.options import (
    EveryOption,
    JsonOption,
    RunArgument,
    TimesOption,
    TokenFileOption,
    UrlOption,
    asked,
    look_again,
    print_json,
    say,
)
from replay_service.cli.operators.pictures import RunLook, event_line, run_picture, table_of
from replay_service.cli.operators.words import visible

_PAGE: Final = 1000
_CHANGES: Final = "created,configured,adopted,adjusted,sealed,closed,finished,rewound"
_NUM_CHANGES: Final = 5
_MOST_TEXT: Final = 10_000
"""Characters of a sample that a terminal shows."""
_LOOKED_AT_AGE_S: Final = 1.0
"""Of statistics that a command asks for again and again, and shares with others who do."""


def events(
    run: RunArgument,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what happens, until Ctrl-C.")] = False,
    kind: Annotated[
        str | None, typer.Option(help="Only these kinds, such as configured,adjusted,rewound; with commas.")
    ] = None,
    last: Annotated[int, typer.Option(min=0, max=100_000, help="How many past events to begin with.")] = 20,
    url: UrlOption = DEFAULT_URL,
    token_file: TokenFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the events of a run, the latest at the end: plans, reports and changes.

    While they are followed, plans and reports are summed up once a second.
    """
    with asked(url, token_file) as service:
        past, after = _past(service, run, kind, last)
        for each in past:
            _say(each, as_json)
        for each in service.follow(run, after, kind) if follow else ():
            _say(each, as_json)


def _say(event: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(event)
    else:
        say(event_line(event))


def _past(service: ServiceClient, run: str, kind: str | None, last: int) -> tuple[list[dict[str, Any]], int]:
    """The last events, and after which number to go on. Of some kinds, all pages are read, since nothing tells where
    the last ones begin."""
    end = service.of_run(run)["as_of"]
    found, after = deque[dict[str, Any]](maxlen=last), -1 if kind is not None else max(-1, end - last)
    for page in _pages(service, run, after, kind):
        found += page["events"]
        after = page["next"]
    return list(found), after


def _pages(service: ServiceClient, run: str, after: int, kind: str | None) -> Iterator[dict[str, Any]]:
    """The pages of events after a number, up to the end of the journal as it is now."""
    while True:
        page = service.of_run(run, "/events", after=after, limit=_PAGE, kind=kind)
        yield page
        if page["next"] >= page["as_of"]:
            return
        after = page["next"]


def samples(
    run: RunArgument,
    order: Annotated[str | None, typer.Option(help="What comes first; a minus before it means descending.")] = None,
    domain: Annotated[str | None, typer.Option(help="Only samples of this domain.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many samples.")] = 10,
    text: Annotated[bool, typer.Option("--text", help="Also show their text.")] = False,
    url: UrlOption = DEFAULT_URL,
    token_file: TokenFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the rehearsed samples of a run, the most damaged first."""
    with asked(url, token_file) as service:
        query = {"order": order, "domain": domain, "limit": limit, "text": 1 if text else None}
        found = service.of_run(run, "/samples", **query)
        if as_json:
            print_json(found)
        else:
            say(_samples_picture(found, text))


def _samples_picture(page: dict[str, Any], has_text: bool) -> RenderableType:
    found = page["samples"]
    if not found:
        return Text("nothing was reported yet")
    if has_text:
        problem = page["text_problem"]
        texts = [part for each in found for part in (Text(_head(each), style="bold"), _text_of(each))]
        return Group(*texts) if problem is None else Text(f"no text: {visible(problem)}")
    rows = [
        (
            str(each["sample_id"]),
            each["stratum_name"],
            f"{each['num_visits']:,}",
            f"{each['age_steps']:,} steps ago",
            f"{each['damage']:.3g}",
            f"{each['loss_nats']:.3f}",
            f"{each['excess_nats']:+.3f}",
        )
        for each in found
    ]
    head = ("sample", "stratum", "visits", "last seen", f"damage ({page['signal']})", "loss then", "excess")
    return table_of(head, rows, right=("sample", "visits", "last seen", head[4], "loss then", "excess"))


def _head(sample: dict[str, Any]) -> str:
    return (
        f"sample {sample['sample_id']}, {visible(sample['stratum_name'])}: {sample['excess_nats']:+.3f} nats at step "
        f"{sample['last_step']:,}, {sample['num_flips']:,} flips of {sample['num_tokens']:,} predictions"
    )


def _text_of(sample: dict[str, Any]) -> Text:
    text = sample["text"]
    if text is None:
        return Text("(no text)")
    num_more = len(text) - _MOST_TEXT
    more = f" ... and {num_more:,} more characters: --json has them all" if num_more > 0 else ""
    return Text(visible(text[:_MOST_TEXT]) + more)


def top(
    run: RunArgument,
    every: EveryOption = 2.0,
    times: TimesOption = None,
    url: UrlOption = DEFAULT_URL,
    token_file: TokenFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show how a run goes, again and again, until Ctrl-C."""
    with asked(url, token_file) as service:
        pace = _Pace()

        def see() -> dict[str, Any]:
            look = look_at(service, run, _LOOKED_AT_AGE_S)
            changes, _ = _past(service, run, _CHANGES, _NUM_CHANGES)
            return {
                **look.stats,
                "steps_per_s": pace.of(look.stats["next_step"]),
                "changes": changes,
            }

        look_again(see, _top_picture, every, times, as_json)


class _Pace:
    """The planned steps a second between two looks."""

    def __init__(self) -> None:
        self._before: tuple[float, int] | None = None

    def of(self, step: int) -> float | None:
        now, before = time.monotonic(), self._before
        self._before = now, step
        return None if before is None or step < before[1] else (step - before[1]) / max(now - before[0], 1e-9)


def _top_picture(seen: dict[str, Any]) -> RenderableType:
    picture = run_picture(RunLook(seen, seen["steps_per_s"]))
    return Group(picture, Text(), *(event_line(each) for each in seen["changes"]))


def look_at(service: ServiceClient, run: str, max_age_s: float = 0.0) -> RunLook:
    """A look at a run, whose statistics may be that old."""
    return RunLook(service.of_run(run, "/stats", max_age_s=max_age_s))
