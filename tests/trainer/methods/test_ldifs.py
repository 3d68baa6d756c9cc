import pytest
import torch
from torch import nn

from replay_trainer.errors import InvalidTraining
from replay_trainer.methods.ldifs import VISION, FeatureDrift, feature_distance
from replay_trainer.methods.teacher import frozen_copy
from tests.trainer.methods.ldifs_worlds import (
    QUARTERS,
    assert_same,
    conv_net,
    disturbed,
    drift_of,
    gradients,
    language_features,
    language_model,
    language_reference,
    token_ids,
    vision_features,
    vision_model,
    vision_reference,
)


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
