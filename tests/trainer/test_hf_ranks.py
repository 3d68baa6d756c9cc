"""`transformers.Trainer` in several processes: together they rehearse what one would, and each reports its own rows."""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from replay_service.testing import replay_service
from tests.trainer import hf_ranks
from tests.trainer.hf_ranks import NUM_STEPS, RESUMED_AT, Seen

ROOT = Path(__file__).parent.parent.parent
WORLD_SIZE = 2
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@dataclass(frozen=True, slots=True)
class Found:
    """What one process saw alone, also on short rows, each rank of several, and the runs' statistics."""

    alone: Seen
    short_alone: Seen
    ranks: dict[str, list[Seen]]
    stats: dict[str, dict[str, Any]]

    def together(self, training: str) -> dict[int, list[int]]:
        """The samples that all ranks rehearsed in each step, in order."""
        ranks = self.ranks[training]
        return {step: sorted(chain.from_iterable(each.samples[step] for each in ranks)) for step in ranks[0].samples}


@pytest.fixture(scope="module")
def found(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Found]:
    folder = tmp_path_factory.mktemp("ranks")
    vocab_size = AutoModelForCausalLM.from_pretrained(tiny_model).config.vocab_size
    with replay_service(seq_len=12, vocab_size=vocab_size, serve=True) as service, service.client() as client:
        alone = hf_ranks.train(client, "alone", tiny_model, folder / "alone", 1, resume=False)
        short = hf_ranks.train(client, "short-alone", tiny_model, folder / "short-alone", 1, resume=False, short=True)
        command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(WORLD_SIZE)]
        module = ["-m", "tests.trainer.hf_ranks", service.url, str(tiny_model), str(folder)]
        subprocess.run([sys.executable, *command, *module], check=True, cwd=ROOT, timeout=110)
        stats = {run: client.stats(run) for run in ("alone", "together", "flat", "split", "short")}
    names = ("whole", "resumed", "flat", "split", "short")
    yield Found(
        alone,
        short,
        {name: [_seen(folder / f"{name}-{rank}.json") for rank in range(WORLD_SIZE)] for name in names},
        stats,
    )


def _seen(path: Path) -> Seen:
    seen = json.loads(path.read_text())
    return Seen({int(step): samples for step, samples in seen["samples"].items()}, seen["losses"], seen["num_apart"])


def test_the_processes_of_a_step_share_what_one_would_rehearse(found: Found) -> None:
    expected = {step: sorted(samples) for step, samples in found.alone.samples.items()}
    assert [len(each) for each in expected.values()] == [2, 3, 3, 2, 3, 3]
    assert found.together("whole") == expected
    for step in range(NUM_STEPS):
        counts = [len(rank.samples[step]) for rank in found.ranks["whole"]]
        assert max(counts) - min(counts) <= 1


def test_the_loss_of_a_step_is_of_all_processes(found: Found) -> None:
    assert len(found.alone.losses) == NUM_STEPS
    assert found.ranks["whole"][0].losses == pytest.approx(found.alone.losses, rel=1e-4)


def test_rehearsed_rows_in_a_pass_of_their_own_are_learned_and_reported_by_all_processes(found: Found) -> None:
    alone, ranks = found.short_alone, found.ranks["short"]
    assert [each.num_apart for each in (alone, *ranks)] == [2 * NUM_STEPS] * 3
    assert not any(each.num_apart for each in (found.alone, *found.ranks["whole"]))
    assert found.together("short") == {step: sorted(samples) for step, samples in alone.samples.items()}
    assert ranks[0].losses == pytest.approx(alone.losses, rel=1e-4)


def test_every_process_reports_its_rows_once(found: Found) -> None:
    for stats in found.stats.values():
        assert (stats["rows_rehearsed"], stats["num_reported"], stats["num_pending"]) == (16, 16, 0)


def test_processes_that_resume_rehearse_the_same_samples(found: Found) -> None:
    whole, resumed = found.ranks["whole"], found.ranks["resumed"]
    for before, after in zip(whole, resumed, strict=True):
        assert after.samples == {step: before.samples[step] for step in range(RESUMED_AT, NUM_STEPS)}
    assert resumed[0].losses == whole[0].losses


@pytest.mark.parametrize("training", ["flat", "split"])
def test_processes_without_padding_or_that_split_batches_train_on_the_same(found: Found, training: str) -> None:
    assert found.together(training) == found.together("whole")
    assert found.ranks[training][0].losses == pytest.approx(found.ranks["whole"][0].losses, rel=1e-4)
