import io

import pytest
from rich.console import Console

from replay_service.corpus.ingest.progress_line import ingest_progress
from replay_service.corpus.ingest.status import IngestProgress
from replay_service.progress import duration, seconds_left, short


@pytest.mark.parametrize(
    ("elapsed_s", "share_done", "share_left", "left"),
    [(10.0, 0.0, 1.0, None), (10.0, 0.25, 0.75, 30.0), (10.0, 0.1, 0.1, 10.0), (10.0, 0.5, 0.0, None)],
)
def test_the_time_left_goes_on_as_it_went(
    elapsed_s: float, share_done: float, share_left: float, left: float | None
) -> None:
    assert seconds_left(elapsed_s, share_done, share_left) == left


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "0 s"),
        (40.4, "40 s"),
        (119, "119 s"),
        (120, "2 min"),
        (7199, "120 min"),
        (7200, "2 h"),
        (86_400, "24 h"),
        (172_800, "2 d"),
        (10**7, "116 d"),
    ],
)
def test_a_duration_is_said_as_people_say_it(seconds: float, said: str) -> None:
    assert duration(seconds) == said


@pytest.mark.parametrize(
    ("number", "said"),
    [(0, "0"), (999, "999"), (12_345, "12.3k"), (678_900, "679k"), (1_000_000, "1.0M"), (10**13, "10.0T")],
)
def test_a_count_is_said_in_short(number: int, said: str) -> None:
    assert short(number) == said


def test_an_ingest_is_shown_by_its_rows_and_tokens_in_80_columns() -> None:
    shown = io.StringIO()
    with ingest_progress(Console(file=shown, width=80), "ingest a-corpus-with-a-long-name") as show:
        show(IngestProgress(0, 4, 0.5, 0, 0, 0, 0))
        show(IngestProgress(3, 4, 0.75, 12_345, 678_900, 0, 1))
        show(IngestProgress(4, 4, 1.0, 20_000, 1_000_000, 1_234, 2))
    text = shown.getvalue()
    assert "ingest a-corpus" in text
    assert "20.0k rows, 1.0M tokens" in text
    assert "left" not in text
    assert max(map(len, text.splitlines())) <= 80


def test_the_longest_line_of_an_ingest_fits_80_columns() -> None:
    shown = io.StringIO()
    with ingest_progress(Console(file=shown, width=80), "ingest a-corpus-with-a-long-name") as show:
        show(IngestProgress(3, 4, 0.75, 999_499_000, 999_499_000_000, 1_234, 1, seconds_left=7199.0))
        show(IngestProgress(3, 4, 0.75, 1, 1, 0, 1, waiting="idle 119 min: 0 of 1024 CPUs free"))
    assert "idle 119 min: 0 of 1024 CPUs free" in shown.getvalue()
    assert max(map(len, shown.getvalue().splitlines())) <= 80
