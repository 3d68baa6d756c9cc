"""LDIFS where something stands around the model: DDP, compile, checkpointing, autocast, adapters."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn

from replay_trainer.errors import InvalidTraining
from replay_trainer.methods.ldifs import FeatureDrift
from replay_trainer.methods.teacher import frozen_copy
from tests.trainer.methods.ldifs_worlds import (
    assert_same,
    disturbed,
    drift_of,
    gradients,
    language_features,
    language_model,
    language_reference,
    token_ids,
)

PEFT_BEHIND = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
"""peft asks transformers for what has a new name."""


@contextmanager
def one_rank_group(folder: Path) -> Iterator[None]:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder / 'group'}", rank=0, world_size=1)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("wrap", ["ddp", "compile and ddp"])
def test_a_wrapped_model_drifts_as_the_bare_one(wrap: str, tmp_path: Path) -> None:
    model = language_model(depth=2)
    drift = FeatureDrift(model, base=frozen_copy(model))
    disturbed(model)
    ids, mask = token_ids()
    expected = drift.penalty(drift_of(drift, model, ids, mask))
    bare = gradients(expected, model)
    with one_rank_group(tmp_path):
        wrapped: Any = torch.compile(model, backend="aot_eager") if "compile" in wrap else model
        wrapped = nn.parallel.DistributedDataParallel(wrapped) if "ddp" in wrap else wrapped
        for _ in range(2):
            with drift.recording():
                logits = wrapped(input_ids=ids, use_cache=False).logits
            penalty = drift.penalty(drift.of(mask, lambda base: base(input_ids=ids, use_cache=False)))
            # All parameters take part in a training loss, which DDP waits for.
            loss = penalty + 0 * logits.sum()
            torch.testing.assert_close(penalty, expected)
            assert_same(gradients(loss, model), bare)
        # The same model runs without recording.
        wrapped(input_ids=ids, use_cache=False)
    torch._dynamo.reset()


def disturbed_world() -> tuple[Any, FeatureDrift, tuple[Tensor, Tensor]]:
    """A model that has moved from its base model, how far it has, and token ids with their mask."""
    model = language_model()
    drift = FeatureDrift(model, base=frozen_copy(model))
    disturbed(model)
    return model, drift, token_ids()


@pytest.mark.parametrize("reentrant", [False, True])
def test_recomputation_of_gradient_checkpointing_leaves_no_trace(reentrant: bool) -> None:
    model, drift, (ids, mask) = disturbed_world()
    expected = drift.penalty(drift_of(drift, model, ids, mask))
    plain = gradients(expected, model)
    runs: list[int] = []
    model.model.layers[1].input_layernorm.register_forward_hook(lambda *_: runs.append(1))
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    penalty = drift.penalty(drift_of(drift, model, ids, mask))
    torch.testing.assert_close(penalty, expected)
    assert_same(gradients(penalty, model), plain)
    assert len(runs) == 2
    assert_same(gradients(drift.penalty(drift_of(drift, model, ids, mask)), model), plain)


def checkpoint_around_the_blocks(model: Any, reentrant: bool) -> None:
    """Checkpointing of another library, with a block's hooks inside it."""
    forward = model.model.forward

    @functools.wraps(forward)
    def run(**inputs: Any) -> Any:
        for block in model.model.layers:
            block.__class__ = around(type(block), reentrant)
        return forward(**inputs)

    model.model.forward = run


@functools.cache
def around(kind: type, reentrant: bool) -> type:
    class Checkpointed(kind):  # type: ignore[misc, valid-type]
        def __call__(self, hidden: Tensor, **keywords: Any) -> Any:
            run = functools.partial(kind.__call__, self, **keywords)
            return torch.utils.checkpoint.checkpoint(run, hidden, use_reentrant=reentrant)

    return kind if kind.__name__ == "Checkpointed" else Checkpointed


@pytest.mark.parametrize("reentrant", [False, True])
def test_hooks_within_checkpointing_see_the_first_pass_alone(reentrant: bool) -> None:
    model, drift, (ids, mask) = disturbed_world()
    expected = drift.penalty(drift_of(drift, model, ids, mask))
    plain = gradients(expected, model)
    checkpoint_around_the_blocks(model, reentrant)
    model.enable_input_require_grads()
    penalty = drift.penalty(drift_of(drift, model, ids, mask))
    torch.testing.assert_close(penalty, expected)
    assert_same(gradients(penalty, model), plain)


def test_features_before_which_all_is_frozen_are_refused() -> None:
    model = language_model()
    drift = FeatureDrift(model, base=frozen_copy(model))
    model.model.requires_grad_(False)
    ids, mask = token_ids()
    with pytest.raises(InvalidTraining, match=r"layers\.4 have no gradient"):
        drift_of(drift, model, ids, mask)
    with torch.no_grad():
        assert drift.penalty(drift_of(drift, model, ids, mask)).item() == pytest.approx(0, abs=1e-10)


def test_under_autocast_distances_are_float32() -> None:
    model = language_model()
    drift = FeatureDrift(model, base=frozen_copy(model))
    ids, mask = token_ids()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        at_first = drift.penalty(drift_of(drift, model, ids, mask))
    disturbed(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        penalty = drift.penalty(drift_of(drift, model, ids, mask))
    assert (penalty.dtype, at_first.item()) == (torch.float32, 0)
    in_float32 = drift.penalty(drift_of(drift, model, ids, mask))
    assert penalty.item() == pytest.approx(in_float32.item(), rel=0.05)
    ours, theirs = (
        torch.cat([each.flatten() for each in gradients(loss, model).values()]) for loss in (penalty, in_float32)
    )
    assert torch.cosine_similarity(ours, theirs, dim=0) > 0.999


def with_adapters(model: nn.Module) -> Any:
    torch.manual_seed(3)
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    return peft.get_peft_model(model, config)


@PEFT_BEHIND
@pytest.mark.parametrize("wrap", ["bare", "ddp", "compile"])
def test_a_model_with_its_adapters_off_is_as_good_a_base_as_a_copy(wrap: str, tmp_path: Path) -> None:
    base, adapted = frozen_copy(language_model()), with_adapters(language_model())
    ids, mask = token_ids()
    expected = language_reference(language_features(adapted.get_base_model(), ids), language_features(base, ids), mask)
    theirs = gradients(expected, adapted)
    drift = FeatureDrift(adapted, base=None)
    with one_rank_group(tmp_path):
        wrapped: Any = torch.compile(adapted, backend="eager") if wrap == "compile" else adapted
        wrapped = nn.parallel.DistributedDataParallel(wrapped) if wrap == "ddp" else wrapped
        for _ in range(2):
            penalty = drift.penalty(drift_of(drift, wrapped, ids, mask))
            assert penalty.item() == pytest.approx(expected.item(), rel=1e-4)
            assert_same(gradients(penalty, adapted), theirs)
    torch._dynamo.reset()


@PEFT_BEHIND
def test_the_base_model_runs_without_dropout_and_the_model_with_adapters_is_afterwards_as_it_was() -> None:
    adapted = with_adapters(language_model()).train()
    adapted.get_base_model().lm_head.eval()
    before = [module.training for module in adapted.modules()]
    drift = FeatureDrift(adapted, base=None)
    ids, mask = token_ids()

    def run(base: Any) -> None:
        assert not any(module.training for module in base.modules())
        base(input_ids=ids, use_cache=False)

    with drift.recording():
        adapted(input_ids=ids, use_cache=False)
    drift.of(mask, run)
    assert [module.training for module in adapted.modules()] == before
    assert all(each.requires_grad for name, each in adapted.named_parameters() if "lora" in name)
