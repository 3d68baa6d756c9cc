import functools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, ViTConfig, ViTModel

from trainer.errors import InvalidTraining
from trainer.methods.ldifs import VISION, Drift, FeatureDrift, feature_distance, frozen_copy

DEPTH = 5
PEFT_BEHIND = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
"""peft asks transformers for what has a new name."""
QUARTERS = (2, 3, 4, 5)
"""The blocks, counted from one, at each quarter of five, rounded up."""


def language_model(depth: int = DEPTH, **settings: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=30,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=depth,
        num_attention_heads=2,
        max_position_embeddings=16,
        **settings,
    )
    return LlamaForCausalLM(config).train()


def vision_model() -> ViTModel:
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=DEPTH,
        num_attention_heads=2,
        image_size=8,
        patch_size=4,
        num_channels=1,
    )
    return ViTModel(config, add_pooling_layer=False).train()


@contextmanager
def cut(model: Any, depth: int, norm: str) -> Iterator[None]:
    """The model without what comes after `depth` blocks."""
    layers, last = model.layers, getattr(model, norm)
    model.layers = layers[:depth]
    setattr(model, norm, nn.Identity())
    yield
    model.layers = layers
    setattr(model, norm, last)


def language_features(model: LlamaForCausalLM, ids: Tensor) -> list[Tensor]:
    """What comes out of the blocks, by a forward pass each of a model that is cut off there."""
    features = []
    for depth in QUARTERS:
        with cut(model.model, depth, "norm"):
            features.append(model.model(input_ids=ids, use_cache=False).last_hidden_state)
    return features


def vision_features(model: ViTModel, pixels: Tensor) -> list[Tensor]:
    features = []
    for depth in (0, *QUARTERS):
        with cut(model, depth, "layernorm"):
            features.append(model(pixel_values=pixels).last_hidden_state)
    return features


def language_reference(tuned: list[Tensor], base: list[Tensor], mask: Tensor) -> Tensor:
    """0.2 times twice one minus the cosine, token by token."""
    values = []
    for ours, theirs in zip(tuned, base, strict=True):
        for row, t in mask.nonzero().tolist():
            u, v = ours[row, t].double(), theirs[row, t].detach().double()
            values.append(2 * (1 - (u @ v) / (u.norm() * v.norm())))
    return 0.2 * torch.stack(values).mean()


def vision_reference(tuned: list[Tensor], base: list[Tensor]) -> Tensor:
    """10 times the mean over layers, rows, tokens and channels, each channel of a row divided by its norm."""
    values = []
    for ours, theirs in zip(tuned, base, strict=True):
        for row in range(len(ours)):
            for channel in range(ours.shape[2]):
                u, v = ours[row, :, channel].double(), theirs[row, :, channel].detach().double()
                values.append(((u / u.norm() - v / v.norm()) ** 2).mean())
    return 10 * torch.stack(values).mean()


def disturbed(model: nn.Module, seed: int = 5) -> nn.Module:
    """The model after some training, in place."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model


def gradients(loss: Tensor, model: nn.Module) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor], rtol: float = 1e-3, atol: float = 1e-7) -> None:
    """The same gradients; one that is missing is zero."""
    assert any(each.abs().max() > 100 * atol for each in theirs.values())
    for name in ours.keys() | theirs.keys():
        some = ours.get(name, theirs.get(name))
        torch.testing.assert_close(
            ours.get(name, torch.zeros_like(some)), theirs.get(name, torch.zeros_like(some)), rtol=rtol, atol=atol
        )


def token_ids(num_rows: int = 3, num_tokens: int = 6) -> tuple[Tensor, Tensor]:
    """Rows and their mask; the second row is shorter."""
    ids = torch.randint(0, 30, (num_rows, num_tokens), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[1, 4:] = False
    return ids, mask


def drift_of(drift: FeatureDrift, model: Any, ids: Tensor, mask: Tensor) -> Drift:
    """Of one forward pass of `model`, which may be wrapped."""
    with drift.recording():
        model(input_ids=ids, use_cache=False)
    return drift.of(mask, lambda base: base(input_ids=ids, use_cache=False))


def conv_net() -> nn.Sequential:
    """Three stages of maps that get smaller."""
    torch.manual_seed(0)
    stages = [nn.Sequential(nn.Conv2d(channels, 4, 3, stride=2, padding=1), nn.ReLU()) for channels in (1, 4, 4)]
    return nn.Sequential(nn.Sequential(*stages), nn.Flatten(), nn.Linear(4, 3))


def test_maps_of_a_convolutional_network_are_tokens_each_layer_with_its_own_number() -> None:
    model = conv_net()
    drift = FeatureDrift(model, base=frozen_copy(model), form=VISION)
    base = frozen_copy(model)
    with torch.no_grad():
        for each in model.parameters():
            each.add_(0.1)
    images = torch.rand(5, 1, 8, 8)
    with drift.recording():
        model(images)
    found = drift.of(None, lambda base: base(images[:3]), rows=slice(3))
    expected, tuned_map, base_map = [], images[:3], images[:3]
    for stage, base_stage in zip([None, *model[0]], [None, *base[0]], strict=True):
        if stage is not None and base_stage is not None:
            tuned_map, base_map = stage(tuned_map), base_stage(base_map)
        maps = (nn.functional.normalize(each.flatten(2), dim=2, eps=1e-10) for each in (tuned_map, base_map))
        expected.append((next(maps) - next(maps)).square().mean())
    assert drift.layers == ("0.0:input", "0.0", "0.1", "0.2")
    assert found.num_tokens == 3
    torch.testing.assert_close(drift.penalty(found), 10 * torch.stack(expected).mean())
    found.total.backward()  # type: ignore[no-untyped-call]
    assert next(model.parameters()).grad is not None


def test_without_a_mask_every_token_counts() -> None:
    model = vision_model()
    drift = FeatureDrift(model, base=frozen_copy(model), form=VISION)
    with torch.no_grad():
        for each in model.parameters():
            each.add_(0.01)
    pixels = torch.rand(3, 1, 8, 8)
    means = []
    for mask in (None, torch.ones(3, 5, dtype=torch.bool)):
        with drift.recording():
            model(pixel_values=pixels)
        means.append(drift.of(mask, lambda base: base(pixel_values=pixels)).mean())
    torch.testing.assert_close(means[0], means[1])


def test_the_language_form_and_its_gradient_are_those_of_a_slow_reference() -> None:
    model = language_model()
    base = frozen_copy(model)
    drift = FeatureDrift(disturbed(model), base=base)
    ids, mask = token_ids()
    expected = language_reference(language_features(model, ids), language_features(base, ids), mask)
    penalty = drift.penalty(drift_of(drift, model, ids, mask))
    assert penalty.item() == pytest.approx(expected.item(), rel=1e-4)
    assert_same(gradients(penalty, model), gradients(expected, model))


def test_the_vision_form_and_its_gradient_are_those_of_a_slow_reference() -> None:
    model = vision_model()
    base = frozen_copy(model)
    drift = FeatureDrift(disturbed(model), base=base, form=VISION)
    pixels = torch.randn(2, 1, 8, 8)
    expected = vision_reference(vision_features(model, pixels), vision_features(base, pixels))
    with drift.recording():
        model(pixel_values=pixels)
    moved = drift.of(torch.ones(2, 5, dtype=torch.bool), lambda base: base(pixel_values=pixels))
    penalty = drift.penalty(moved)
    assert penalty.item() == pytest.approx(expected.item(), rel=1e-4)
    assert_same(gradients(penalty, model), gradients(expected, model), atol=1e-6)


def test_the_layers_are_those_at_each_quarter_of_the_depth_and_for_vision_what_comes_into_the_first() -> None:
    language, vision = language_model(), vision_model()
    blocks = [f"layers.{number - 1}" for number in QUARTERS]
    assert FeatureDrift(language, base=frozen_copy(language)).layers == tuple(f"model.{each}" for each in blocks)
    assert FeatureDrift(vision, base=frozen_copy(vision), form=VISION).layers == ("layers.0:input", *blocks)


def test_at_the_beginning_of_training_nothing_has_moved() -> None:
    model = language_model()
    drift = FeatureDrift(model, base=frozen_copy(model))
    penalty = drift.penalty(drift_of(drift, model, *token_ids()))
    assert penalty.item() == pytest.approx(0, abs=1e-10)
    assert all(each.abs().max() < 1e-5 for each in gradients(penalty, model).values())


def test_only_the_rows_that_are_asked_for_are_compared_and_run_by_the_base_model() -> None:
    model = language_model()
    drift = FeatureDrift(model, base=frozen_copy(model))
    disturbed(model)
    ids, mask = token_ids()
    with drift.recording():
        model(input_ids=ids, use_cache=False)
    moved = drift.of(mask, lambda base: base(input_ids=ids[:2], use_cache=False), rows=slice(2))
    alone = drift_of(drift, model, ids[:2], mask[:2])
    assert moved.num_tokens.item() == 10
    torch.testing.assert_close(moved.total, alone.total)


def test_a_batch_without_rows_to_compare_runs_no_base_model_and_has_not_moved() -> None:
    model = language_model()
    drift = FeatureDrift(model, base=frozen_copy(model))
    ids, mask = token_ids()
    with drift.recording():
        model(input_ids=ids, use_cache=False)
    penalty = drift.penalty(drift.of(mask, lambda base: pytest.fail("it ran"), rows=slice(0)))
    assert penalty.item() == 0
    assert not any(each.any() for each in gradients(penalty, model).values())


def test_what_padding_holds_changes_nothing_even_if_it_is_no_number() -> None:
    tuned, base = torch.randn(2, 4, 3), torch.randn(2, 4, 3)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]).bool()
    for along in ("hidden", "tokens"):
        plain = feature_distance(tuned, base, mask, along)
        spoilt = tuned.masked_fill(~mask[:, :, None], float("nan"))
        torch.testing.assert_close(feature_distance(spoilt, base, mask, along), plain)


def test_the_model_runs_once_and_the_base_model_once_without_gradients() -> None:
    model = language_model()
    base = frozen_copy(model)
    drift = FeatureDrift(model, base=base)
    passes: list[tuple[str, bool, bool]] = []
    for name, each in (("tuned", model), ("base", base)):
        each.register_forward_hook(
            lambda module, _arguments, _output, name=name: passes.append(
                (name, module.training, torch.is_grad_enabled())
            )
        )
    drift.penalty(drift_of(drift, model, *token_ids())).backward()
    assert passes == [("tuned", True, True), ("base", False, False)]
    assert all(each.grad is None for each in base.parameters())


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


@pytest.mark.parametrize("reentrant", [False, True])
def test_recomputation_of_gradient_checkpointing_leaves_no_trace(reentrant: bool) -> None:
    model = language_model()
    drift = FeatureDrift(model, base=frozen_copy(model))
    disturbed(model)
    ids, mask = token_ids()
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
    model = language_model()
    drift = FeatureDrift(model, base=frozen_copy(model))
    disturbed(model)
    ids, mask = token_ids()
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


def test_a_model_without_adapters_needs_a_base_model() -> None:
    with pytest.raises(InvalidTraining, match="base=frozen_copy"):
        FeatureDrift(language_model(), base=None)


def test_a_layer_that_is_not_there_is_refused_with_those_near_it() -> None:
    model = language_model()
    with pytest.raises(InvalidTraining, match=r"no layer 'layers.1'; near it are model.layers.1"):
        FeatureDrift(model, base=frozen_copy(model), layers=["layers.1"])
    with pytest.raises(InvalidTraining, match=r"no layer 'model.layer.1'; near it are .*model.layers.1"):
        FeatureDrift(model, base=frozen_copy(model), layers=["model.layer.1"])
    with pytest.raises(InvalidTraining, match=r"no layer 'xyz'; model.named_modules"):
        FeatureDrift(model, base=frozen_copy(model), layers=["xyz"])
    with pytest.raises(InvalidTraining, match="name at least one"):
        FeatureDrift(model, base=frozen_copy(model), layers=[])


def test_a_base_model_of_another_build_is_refused() -> None:
    model = language_model()
    with pytest.raises(InvalidTraining, match=r"20 weights differ .* first is .*bias, missing here and \(16,\)"):
        FeatureDrift(model, base=language_model(attention_bias=True))
    with pytest.raises(InvalidTraining, match="the model in training itself"):
        FeatureDrift(model, base=model)


def test_a_model_whose_blocks_cannot_be_told_needs_its_layers_named() -> None:
    none, two = nn.Linear(2, 2), nn.ModuleDict({"left": language_model(), "right": language_model()})
    with pytest.raises(InvalidTraining, match="one stack of transformer blocks, and has none; name the layers"):
        FeatureDrift(none, base=frozen_copy(none))
    with pytest.raises(InvalidTraining, match=r"more than one: left.model.layers, right.model.layers"):
        FeatureDrift(two, base=frozen_copy(two))


def test_a_drift_without_its_forward_pass_is_refused() -> None:
    model = language_model()
    drift = FeatureDrift(model, base=frozen_copy(model))
    ids, mask = token_ids()
    with pytest.raises(InvalidTraining, match="no forward pass was recorded"):
        drift.of(mask, lambda base: base(input_ids=ids))
    with drift.recording():
        pass
    with pytest.raises(InvalidTraining, match="gave no features: the forward pass did not run there"):
        drift.of(mask, lambda base: base(input_ids=ids))
    with drift.recording():
        model(input_ids=ids)
    with pytest.raises(InvalidTraining, match="gave no features"):
        drift.of(mask, lambda base: None)
    with drift.recording():
        model(input_ids=ids)
        with pytest.raises(InvalidTraining, match="ran twice"):
            model(input_ids=ids)


def test_a_base_model_that_ran_other_rows_is_refused() -> None:
    model = language_model()
    drift = FeatureDrift(model, base=frozen_copy(model))
    ids, mask = token_ids()
    with drift.recording():
        model(input_ids=ids)
    with pytest.raises(InvalidTraining, match="run the base model on the same rows"):
        drift.of(mask, lambda base: base(input_ids=ids), rows=slice(2))


def test_a_layer_whose_output_has_no_tokens_is_refused() -> None:
    model = nn.Linear(2, 2)
    drift = FeatureDrift(nn.Sequential(model), base=frozen_copy(nn.Sequential(model)), layers=["0"])
    with drift.recording(), pytest.raises(InvalidTraining, match=r"\[rows, tokens, channels\] or .*, not \(3, 2\)"):
        model(torch.zeros(3, 2))


def test_closed_hooks_are_gone() -> None:
    model = language_model()
    drift = FeatureDrift(model, base=frozen_copy(model))
    drift.close()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
