from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel

from replay_service.errors import CorpusError
from replay_service.language.losses import token_losses
from replay_service.language.model import autocast, load_model
from replay_service.language.precision import Precision
from replay_service.language.scoring import LEAST_LOGPROB, RowScorer, Scores, likeliest

CPU = torch.device("cpu")
WIDTH = 24
TOPK = 5
lengths = st.lists(st.integers(2, WIDTH), min_size=1, max_size=9)


def random_rows(lengths: list[int], seed: int = 0, width: int = WIDTH) -> tuple[np.ndarray, np.ndarray]:
    """Random tokens, also beyond the lengths."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 300, (len(lengths), width)).astype(np.uint16), np.array(lengths, dtype=np.int32)


@pytest.fixture(scope="module")
def scorer(tiny_model: Path) -> RowScorer:
    """Gives all there is, four rows a forward pass."""
    return RowScorer(str(tiny_model), "float32", batch_size=4, device=CPU, topk=TOPK, features=True, token_losses=True)


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Any:
    return load_model(str(tiny_model))


@torch.no_grad()
def plain_loss(model: Any, ids: np.ndarray, precision: Precision) -> float:
    """As anybody would measure it: one row without padding, the model's own loss."""
    row = torch.from_numpy(ids[None].astype(np.int64))
    with autocast(precision, CPU):
        return float(model(input_ids=row, labels=row).loss)


@torch.no_grad()
def plain_logprobs(model: Any, ids: np.ndarray) -> np.ndarray:
    logits = model(input_ids=torch.from_numpy(ids[None].astype(np.int64))).logits[0, :-1]
    logprobs: np.ndarray = logits.log_softmax(dim=1).numpy()
    return logprobs


def everything(scores: Scores) -> dict[str, np.ndarray]:
    columns = scores._asdict()
    assert all(column is not None for column in columns.values())
    return columns


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_base_losses_are_those_of_a_plain_loop_over_the_rows(
    tiny_model: Path, model: Any, precision: Precision
) -> None:
    ids, length = random_rows([24, 2, 17, 24, 3, 9, 24, 11, 5])
    scores = RowScorer(str(tiny_model), precision, batch_size=4, device=CPU).score(ids, length)
    expected = [plain_loss(model, row[:end], precision) for row, end in zip(ids, length, strict=True)]
    np.testing.assert_allclose(scores.base_loss, expected, atol=1e-3)
    assert scores.base_loss.dtype == np.float32


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_full_rows_are_scored_bitwise_as_the_trainer_measures_them(
    tiny_model: Path, model: Any, precision: Precision
) -> None:
    ids, length = random_rows([WIDTH] * 6)
    scores = RowScorer(str(tiny_model), precision, batch_size=6, device=CPU).score(ids, length)
    rows = torch.from_numpy(ids.astype(np.int64))
    with torch.inference_mode(), autocast(precision, CPU):
        losses = token_losses(model(input_ids=rows, use_cache=False).logits, rows, torch.from_numpy(length).long())
    assert np.array_equal(scores.base_loss, losses.mean_nats().numpy())
    assert np.array_equal(scores.correct[:, 1:], losses.correct_BS.numpy())
    assert not scores.correct[:, 0].any()


@given(st.integers(0, 10**6), lengths)
@settings(max_examples=15, deadline=None)
def test_how_rows_share_forward_passes_changes_rounding_alone(scorer: RowScorer, seed: int, lengths: list[int]) -> None:
    ids, length = random_rows(lengths, seed)
    together = everything(scorer.score(ids, length))
    alone = [everything(scorer.score(ids[i : i + 1], length[i : i + 1])) for i in range(len(ids))]
    for name in ("base_loss", "token_nats", "feature"):
        np.testing.assert_allclose(together[name], np.concatenate([row[name] for row in alone]), atol=1e-5)
    logprobs = np.concatenate([row["topk_logprobs"] for row in alone])
    np.testing.assert_allclose(together["topk_logprobs"], logprobs, atol=1e-2)


def test_what_lies_beyond_a_rows_length_means_nothing(scorer: RowScorer) -> None:
    ids, length = random_rows([7, WIDTH, 2])
    before = everything(scorer.score(ids, length))
    ids[0, 7:], ids[2, 2:] = 0, 299
    for name, column in everything(scorer.score(ids, length)).items():
        assert np.array_equal(column, before[name]), name


def test_each_predictions_loss_and_hit_is_told(scorer: RowScorer, model: Any) -> None:
    ids, length = random_rows([WIDTH, 2, 9])
    scores = everything(scorer.score(ids, length))
    for row, end in enumerate(length):
        logprobs, came = plain_logprobs(model, ids[row, :end]), ids[row, 1:end].astype(np.int64)
        nats = -logprobs[np.arange(end - 1), came]
        np.testing.assert_allclose(scores["token_nats"][row, : end - 1], nats, atol=1e-4)
        assert scores["base_loss"][row] == pytest.approx(nats.mean(), abs=1e-4)
        assert np.array_equal(scores["correct"][row, 1:end], logprobs.argmax(axis=1) == came)


def test_the_likeliest_tokens_of_each_prediction_are_told_in_order(scorer: RowScorer, model: Any) -> None:
    ids, length = random_rows([WIDTH, 2, 9])
    scores = everything(scorer.score(ids, length))
    assert scores["topk_ids"].dtype == np.int32
    assert scores["topk_logprobs"].dtype == np.float16
    for row, end in enumerate(length):
        logprobs = plain_logprobs(model, ids[row, :end])
        found = scores["topk_logprobs"][row, : end - 1].astype(np.float32)
        np.testing.assert_allclose(found, -np.sort(-logprobs, axis=1)[:, :TOPK], atol=1e-2)
        of_ids = np.take_along_axis(logprobs, scores["topk_ids"][row, : end - 1].astype(np.int64), axis=1)
        np.testing.assert_allclose(found, of_ids, atol=1e-2)


def test_where_nothing_is_predicted_every_column_says_so(scorer: RowScorer) -> None:
    scores = everything(scorer.score(*random_rows([7, WIDTH])))
    assert not scores["correct"][0, 7:].any()
    assert not scores["token_nats"][0, 6:].any()
    assert not scores["topk_ids"][0, 6:].any()
    assert (scores["topk_logprobs"][0, 6:] == np.float16(LEAST_LOGPROB)).all()


def test_no_log_probability_makes_a_divergence_infinite() -> None:
    least = np.float16(LEAST_LOGPROB)
    assert np.isfinite(least)
    assert np.exp(least) == np.exp(least) * least == 0


def test_a_feature_is_the_mean_of_the_last_hidden_state_over_real_tokens(scorer: RowScorer, model: Any) -> None:
    ids, length = random_rows([WIDTH, 5])
    feature = everything(scorer.score(ids, length))["feature"]
    for row, end in enumerate(length):
        with torch.no_grad():
            output = model(torch.from_numpy(ids[row : row + 1, :end].astype(np.int64)), output_hidden_states=True)
        np.testing.assert_allclose(feature[row], output.hidden_states[-1][0].mean(dim=0), atol=1e-5)


def test_models_of_another_family_are_scored_too(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=300, n_embd=16, n_layer=2, n_head=2, n_positions=WIDTH)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    scorer = RowScorer(str(tmp_path), "float32", batch_size=2, device=CPU, topk=1, features=True)
    ids, length = random_rows([WIDTH, 6, 12])
    scores, model = scorer.score(ids, length), load_model(str(tmp_path))
    expected = [plain_loss(model, row[:end], "float32") for row, end in zip(ids, length, strict=True)]
    np.testing.assert_allclose(scores.base_loss, expected, atol=1e-3)
    assert scores.feature is not None
    assert scores.feature.shape == (3, 16)


def test_what_was_not_asked_for_is_not_there(tiny_model: Path) -> None:
    scores = RowScorer(str(tiny_model), "float32", batch_size=2, device=CPU).score(*random_rows([5, 9]))
    assert scores[2:] == (None, None, None, None)


def test_no_rows_have_no_scores(scorer: RowScorer) -> None:
    shapes = {name: column.shape for name, column in everything(scorer.score(*random_rows([]))).items()}
    assert shapes == {
        "base_loss": (0,),
        "correct": (0, WIDTH),
        "token_nats": (0, WIDTH - 1),
        "topk_ids": (0, WIDTH - 1, TOPK),
        "topk_logprobs": (0, WIDTH - 1, TOPK),
        "feature": (0, 32),
    }


def test_whoever_watches_hears_of_every_row(scorer: RowScorer) -> None:
    heard: list[int] = []
    scorer.score(*random_rows([5] * 10), heard.append)
    assert heard == [4, 4, 2]


@pytest.mark.parametrize("short", [0, 1])
def test_a_row_that_predicts_nothing_is_refused(scorer: RowScorer, short: int) -> None:
    with pytest.raises(ValueError, match=f"a row of {short} tokens predicts nothing"):
        scorer.score(*random_rows([5, short, 9]))


def test_a_length_beyond_the_row_is_refused(scorer: RowScorer) -> None:
    with pytest.raises(ValueError, match="25 is beyond the 24 tokens"):
        scorer.score(*random_rows([5, WIDTH + 1]))


@pytest.mark.parametrize("options", [{"topk": 301}, {"topk": -1}, {"batch_size": 0}])
def test_an_option_out_of_range_is_named(tiny_model: Path, options: dict[str, int]) -> None:
    (name,) = options
    with pytest.raises(ValueError, match=name):
        RowScorer(str(tiny_model), "float32", **{"batch_size": 1, **options})


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=str(tmp_path)):
        RowScorer(str(tmp_path), "float32", batch_size=1)


@given(st.integers(0, 10**6), st.integers(1, 1000), st.integers(1, 12), st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_the_likeliest_are_found_also_among_equals_and_in_any_vocabulary(
    seed: int, vocab_size: int, k: int, num_levels: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randint(-num_levels, num_levels, (3, vocab_size), generator=generator).float()
    k = min(k, vocab_size)
    values, ids = likeliest(logits, k)
    assert torch.equal(values, logits.sort(dim=1, descending=True).values[:, :k])
    assert torch.equal(logits.gather(1, ids), values)
    assert all(len(set(row)) == k for row in ids.tolist())


def test_the_entropy_of_a_row_is_what_the_model_expects_of_its_loss(scorer: RowScorer, model: Any) -> None:
    """The mean over all tokens of the vocabulary, each as likely as the model says."""
    ids, length = random_rows([WIDTH, 2, 9])
    found = scorer.entropy(ids, length)
    for row, end, nats in zip(ids, length, found, strict=True):
        logprobs = plain_logprobs(model, row[:end])
        assert nats == pytest.approx(float(-(np.exp(logprobs) * logprobs).sum(axis=1).mean()), rel=1e-4)
    assert scorer.entropy(ids[:0], length[:0]).shape == (0,)
    with pytest.raises(ValueError, match="predicts nothing"):
        scorer.entropy(ids, np.array([1, 2, 3], dtype=np.int32))
