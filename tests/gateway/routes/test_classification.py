"""Samples to classify, from the corpus to the wire."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from replay_service.corpus.format.manifest import read_manifest
from replay_service.corpus.reading.reader import Corpus
from replay_service.testing import LabelledSamples, ServiceUnderTest, replay_service
from replay_service.wire.batches import Batch, decode_batch, encode_batch
from replay_service.wire.losses import LOSS_ROW
from replay_service.wire.protocol import WIRE_VERSION
from replay_trainer.client import ReplayClient
from tests.wire.test_batches import make_batch, records_of, stream

GOLDEN = Path(__file__).parents[2] / "wire" / "golden" / f"classification-v{WIRE_VERSION}.arrow"
SETTINGS = {"global_batch_size": 8, "injection_ratio": "0.5"}


def make_samples(num_rows: int, shape: tuple[int, ...] = (1, 2, 3), type_: str = "u1") -> Batch:
    batch = make_batch(num_rows)
    rng = np.random.default_rng(1)
    return replace(
        batch,
        header=replace(batch.header, kind="classification", seq_len=0),
        input_ids=np.empty((num_rows, 0), dtype=np.uint8),
        length=np.ones(num_rows, dtype=np.int32),
        base_correct=rng.integers(0, 2, (num_rows, 1)).astype(np.uint8),
        inputs=rng.integers(0, 100, (num_rows, *shape)).astype(type_),
        label=rng.integers(0, 10, num_rows).astype(np.int32),
    )


def same(left: Batch, right: Batch) -> bool:
    mine, theirs = left.columns(), right.columns()
    return (left.header, list(mine)) == (right.header, list(theirs)) and all(
        (mine[name].dtype, mine[name].tolist()) == (theirs[name].dtype, theirs[name].tolist()) for name in mine
    )


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.sampled_from(["u1", "i4", "f2", "f4"]), st.booleans())
def test_tensors_of_any_shape_and_type_survive_the_wire(shape: list[int], type_: str, is_compressed: bool) -> None:
    for num_rows in (0, 1, 5):
        sent = make_samples(num_rows, tuple(shape), type_)
        received = decode_batch(bytes(encode_batch(sent, "zstd" if is_compressed else "none")))
        assert same(received, sent)
        assert received.inputs is not None and received.inputs.shape == (num_rows, *shape)
        assert received.input_ids.shape == (num_rows, 0)
        assert same(received.of_step(4), sent.of_step(4))


def test_labelled_text_survives_the_wire() -> None:
    text = replace(make_samples(5), inputs=None, input_ids=make_batch(5).input_ids)
    assert same(decode_batch(bytes(encode_batch(text))), text)


def test_a_classification_batch_from_an_earlier_day_is_read() -> None:
    """A change that breaks this is a change of the wire: it needs a new version, and a golden file of that."""
    assert same(decode_batch(GOLDEN.read_bytes()), make_samples(5))
    golden, today = pa.ipc.open_stream(GOLDEN.read_bytes()), pa.ipc.open_stream(encode_batch(make_samples(5)))
    assert today.schema.equals(golden.schema)
    headers = [json.loads(each.schema.metadata[b"replay.header"]) for each in (today, golden)]
    assert headers[0] == headers[1]


@pytest.mark.parametrize("name", ["inputs", "label", "base_correct", "length"])
def test_a_classification_batch_without_a_column_is_refused(name: str) -> None:
    records = records_of(bytes(encode_batch(make_samples(5))))
    with pytest.raises(ValueError, match="input_ids" if name == "inputs" else name):
        decode_batch(stream(records.drop_columns([name])))


def test_a_batch_of_an_unknown_kind_is_refused() -> None:
    records = records_of(bytes(encode_batch(make_samples(5))))
    header = json.loads(records.schema.metadata[b"replay.header"]) | {"kind": "speech"}
    body = stream(records.replace_schema_metadata({b"replay.header": json.dumps(header).encode()}))
    with pytest.raises(ValueError, match="kind 'speech'"):
        decode_batch(body)


@pytest.fixture(scope="module")
def service() -> Iterator[ServiceUnderTest]:
    with replay_service(samples=LabelledSamples.random(input_shape=(3, 5))) as found:
        yield found


@pytest.fixture(scope="module")
def client(service: ServiceUnderTest) -> Iterator[ReplayClient]:
    with service.client() as found:
        found.ensure_run("a-run", service.corpus, SETTINGS)
        yield found


def test_a_batch_holds_the_samples_that_its_ids_address(service: ServiceUnderTest, client: ReplayClient) -> None:
    batch = client.batch("a-run", 0, num_steps=10)
    rows = Corpus(service.root / "corpora" / service.corpus).rows(batch.sample_id)
    assert len(batch) == 40 and batch.header.kind == "classification"
    for name, column in rows.columns().items():
        np.testing.assert_array_equal(getattr(batch, name), column)


def test_a_corpus_says_what_is_classified(client: ReplayClient) -> None:
    corpus = client.corpus("pretraining")
    assert corpus.kind == "classification"
    assert corpus.classes == {
        "num_classes": 4,
        "model_fingerprint": "none",
        "input_shape": [3, 5],
        "input_type": "float32",
    }


def test_json_and_arrow_agree_on_samples_to_classify(client: ReplayClient) -> None:
    batch = client.batch("a-run", 3)
    answer = client._json("POST", "/v1/runs/a-run/batches", json={"step": 3}, headers={"Accept": "application/json"})
    assert answer["kind"] == "classification"
    (step,) = answer["steps"]
    assert batch.inputs is not None and batch.label is not None
    for i, sample in enumerate(step["samples"]):
        assert sample["label"] == batch.label[i] and sample["base_correct"] == batch.base_correct[i, 0]
        np.testing.assert_array_equal(np.array(sample["inputs"], np.float32), batch.inputs[i])
        assert "input_ids" not in sample


def test_a_flip_of_a_sample_is_damage_of_its_stratum(client: ReplayClient) -> None:
    client.ensure_run("flips", "pretraining", SETTINGS | {"policy": "mix_cd"})
    for step in range(10):
        batch = client.batch("flips", step)
        rows = np.zeros(len(batch), dtype=LOSS_ROW)
        rows["step"], rows["sample_id"], rows["loss_nats"], rows["num_tokens"] = step, batch.sample_id, 1.0, 1
        rows["num_flips"] = batch.stratum == 3
        assert client.report("flips", rows).rejected == 0
    rates = [each["damage_rate"] for each in client.strata("flips")]
    assert max(rates) == rates[3]


def test_a_sample_in_a_damaged_block_has_length_0_and_the_others_are_served() -> None:
    samples = LabelledSamples.random(60, input_shape=(1, 64, 64))
    with replay_service(samples=samples) as service, service.client() as client:
        file = (
            service.root
            / "corpora"
            / service.corpus
            / read_manifest(service.root / "corpora" / service.corpus).segments[0].file
        )
        content = bytearray(file.read_bytes())
        content[100_000] ^= 1
        file.write_bytes(bytes(content))
        client.ensure_run("a-run", service.corpus, SETTINGS | {"injection_ratio": "1"})
        batch = client.batch("a-run", 0, num_steps=7)
    damaged = batch.length == 0
    assert 0 < damaged.sum() < len(batch) / 2
    assert (
        batch.inputs is not None
        and not batch.inputs[damaged].any()
        and batch.inputs[~damaged].any(axis=(1, 2, 3)).all()
    )


@pytest.mark.parametrize(
    ("changes", "problem"),
    [({"label": [0, 9]}, "from 0 to 3"), ({"base_loss": [1.0]}, "as many"), ({"label": [0]}, "as many")],
)
def test_what_makes_no_corpus_to_classify_is_refused(changes: dict[str, Any], problem: str) -> None:
    samples = replace(LabelledSamples.random(2), domain=None, **changes)
    with pytest.raises(ValueError, match=problem), replay_service(samples=samples):
        pass
