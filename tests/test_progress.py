import io

import pytest
from rich.console import Console

from replay_service.corpus.ingest.status import IngestProgress
from replay_service.progress import duration, ingest_progress, seconds_left


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


def test_an_ingest_is_shown_by_its_rows_tokens_and_what_was_set_aside() -> None:
    shown = io.StringIO()
    with ingest_progress(Console(file=shown, width=160), "ingest wiki") as show:
        show(IngestProgress(0, 4, 0.5, 0, 0, 0, 0))
        show(IngestProgress(3, 4, 0.75, 12_345, 678_900, 0, 1))
        show(IngestProgress(4, 4, 1.0, 20_000, 1_000_000, 1_234, 2))
    text = shown.getvalue()
    assert "ingest wiki" in text
    assert "20,000 rows, 1,000,000 tokens, 1,234 set aside" in text
    assert "left" not in text
