"""Sequences of targets, on a tiny model."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from replay_service.language.model import load_model
from replay_trainer.job.metrics import MetricsFile
from tests.evidence import sequence
from tests.evidence.chains import Chain, Row, read_rows, write_rows
from tests.evidence.sequence import Setting
from tests.evidence.shards import write_shard
from tests.support import running_service
from tests.trainer.worlds import SEQ_LEN, corpus_for

TARGETS = ("stories", "poems")
JOB = {"num_steps": 3, "global_batch_size": 20, "learning_rate": 1e-2, "checkpoint_every": 2}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[str]:
    root = tmp_path_factory.mktemp("root")
    corpus_for(tiny_model, root, name="with-topk", topk=4)
    with running_service(root) as (url, _):
        yield url


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Setting:
    folder = tmp_path_factory.mktemp("world")
    for name in TARGETS:
        texts = [f"{name} of number {i} sat on the mat of number {i * i}" for i in range(30)]
        write_shard(folder / "text" / "targets" / name / "train.parquet", name, texts)
        write_shard(folder / "text" / "targets_heldout" / name / "heldout.parquet", name, texts[:8])
    for domain in ("law", "news"):
        write_shard(folder / "text" / "heldout" / f"{domain}.parquet", domain, [f"{domain} {i}" * 9 for i in range(8)])
    return Setting(tiny_model, folder / "text", folder / "sequence", "with-topk", SEQ_LEN, 8, "float32", JOB)


@pytest.fixture(scope="module")
def finished(setting: Setting, service: str) -> tuple[list[Chain], list[Row]]:
    """All arms with one seed."""
    chains = [setting.chain(arm, 0, TARGETS) for arm in sequence.ARMS]
    return chains, sequence.run(setting, chains, service, Console(quiet=True))


def test_each_stage_begins_with_the_model_of_the_one_before(
    setting: Setting, finished: tuple[list[Chain], list[Row]]
) -> None:
    chain = finished[0][0]
    first, second = (setting.config(chain, stage, "http://unused") for stage in range(2))
    assert first.model == str(setting.model)
    assert second.model == str(chain.model_after(0)) == str(first.output / "model")
    assert [each.data.target.rpartition("/")[2] for each in (first, second)] == [*TARGETS]


def test_a_stage_is_measured_on_the_corpus_and_on_all_targets(finished: tuple[list[Chain], list[Row]]) -> None:
    of_stage = [each for each in finished[1] if (each["arm"], each["stage"]) == ("recommended", 2)]
    assert {(each["kind"], each["text"]) for each in of_stage} == {
        ("pretraining", "law"),
        ("pretraining", "news"),
        ("target", "stories"),
        ("target", "poems"),
    }
    assert len(of_stage) == 2 * 4
    assert {each["target"] for each in of_stage} == {"poems"}
    assert all(each["nats"] != each["base_nats"] for each in of_stage)


def test_arms_differ_and_models_of_finished_chains_are_deleted(finished: tuple[list[Chain], list[Row]]) -> None:
    chains, rows = finished
    assert not [each for chain in chains for each in chain.folder.glob("*/model")]
    last = {each["arm"]: each["nats"] for each in rows if each["stage"] == 2}
    assert len(set(last.values())) == len(sequence.ARMS)
    rehearsing = {each["arm"] for each in rows if each["num_rehearsed_rows"]}
    assert rehearsing == {arm for arm, keys in sequence.ARMS.items() if "rehearsal" in keys}


def test_a_second_call_repeats_no_stage(
    setting: Setting, service: str, finished: tuple[list[Chain], list[Row]]
) -> None:
    chains, rows = finished
    files = [file for chain in chains for file in chain.folder.rglob("*") if file.is_file()]
    before = {file: file.stat().st_mtime_ns for file in files}
    assert sequence.run(setting, chains, service, Console(quiet=True)) == rows
    assert {file: file.stat().st_mtime_ns for file in files} == before


def test_a_sequence_that_was_killed_goes_on_at_its_second_stage_with_the_same_model(
    setting: Setting, service: str, finished: tuple[list[Chain], list[Row]], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = finished[0][0]
    chain = Chain(whole.arm, whole.seed, setting.output / "killed", whole.start, whole.targets)
    train = sequence.fine_tune
    begun: list[str] = []

    def killed_in_the_second(job: object, *others: object) -> object:
        begun.append(job.model)  # type: ignore[attr-defined]
        if len(begun) == 2:
            raise KeyboardInterrupt
        return train(job, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(sequence, "fine_tune", killed_in_the_second)
    with pytest.raises(KeyboardInterrupt):
        sequence.run(setting, [chain], service, Console(quiet=True))
    assert chain.is_finished(0) and not chain.is_finished(1)
    load_model(str(chain.model_after(0)))
    rows = sequence.run(setting, [chain], service, Console(quiet=True))
    assert begun == [str(chain.start), str(chain.model_after(0)), str(chain.model_after(0))]
    assert [each["nats"] for each in rows] == [each["nats"] for each in whole.rows()]
    steps = [each for each in MetricsFile(chain.output(1) / "metrics.jsonl").lines() if each["kind"] == "step"]
    assert [each["step"] for each in steps] == [0, 1, 2]


def test_raw_results_come_back_from_their_file(finished: tuple[list[Chain], list[Row]], tmp_path: Path) -> None:
    write_rows(tmp_path / "sequence.parquet", finished[1])
    assert read_rows(tmp_path / "sequence.parquet") == finished[1]


def test_chains_of_other_settings_have_folders_of_their_own(setting: Setting) -> None:
    longer = Setting(**{**{name: getattr(setting, name) for name in Setting.__slots__}, "job": {**JOB, "num_steps": 4}})
    chains = [
        setting.chain("plain", 0, TARGETS),
        setting.chain("plain", 1, TARGETS),
        setting.chain("LDIFS", 0, TARGETS),
        setting.chain("plain", 0, TARGETS[::-1]),
        longer.chain("plain", 0, TARGETS),
    ]
    assert len({each.folder for each in chains}) == len(chains)
