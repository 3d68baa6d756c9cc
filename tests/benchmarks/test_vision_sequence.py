"""The tables of the sequence of images, from raw results that are known."""

from collections.abc import Iterator

from tests.benchmarks.vision_sequence import ARMS, NEW, OLD, tables
from tests.evidence.chains import Row


def raw(arm: str, seed: int, extra: float) -> Iterator[Row]:
    """A task is right in one image of ten more after its own stage, and in one less after each later one."""
    for stage, target in enumerate(NEW, start=1):
        for place, task in enumerate((OLD, *NEW)):
            right = 0.5 + extra + (0.1 if place == stage else -0.1 * max(0, stage - place))
            after = {"right": right, "worst": right - 0.2, "probed": right + 0.1, "nats": 1.0}
            before = {"right_before": 0.5, "worst_before": 0.25, "probed_before": 0.75, "nats_before": 1.0}
            yield {"arm": arm, "seed": seed, "stage": stage, "target": target, "task": task, **after, **before}


def test_the_tables_say_what_is_right_after_each_stage_and_at_the_end() -> None:
    rows = [*raw("plain", 0, 0.0), *raw("plain", 1, 0.1), *list(raw("LDIFS", 0, 0.0))[:8]]
    old, new = (each.splitlines()[2:] for each in tables(rows).split("\n\n")[1::2])
    assert [each.partition("|")[2].split(" | ")[0].strip() for each in old] == ["first model", "plain"]
    assert old[1] == (
        "| plain | 2 | 45.0 (40.0 to 50.0) | 35.0 (30.0 to 40.0) | 25.0 (20.0 to 30.0) | 5.0 (0.0 to 10.0) | "
        "35.0 (30.0 to 40.0) |"
    )
    assert new[0].count("50.0 (50.0 to 50.0)") == 6 and new[0].count("75.0 (75.0 to 75.0)") == 3
    assert new[1].startswith("| plain | 65.0 (60.0 to 70.0) | 35.0 (30.0 to 40.0) | 45.0 (40.0 to 50.0) |")
    assert tables(rows[-8:]) == "No chain is finished yet."


def test_arms_have_names_of_their_own_and_new_tasks_share_no_digit() -> None:
    assert len({each.name for each in ARMS}) == len(ARMS)
    assert sorted(digit for digits in NEW.values() for digit in digits) == list(range(10))
