from pathlib import Path

import pytest
import torch
from torch import nn

from replay_service.classification.factory import is_factory
from replay_service.classification.model import fingerprint, load_classifier, logits_of
from replay_service.errors import CorpusError
from tests.classification.worlds import NUM_CLASSES, SHAPE, make_tiny_bert, make_tiny_vit, tiny_net

HERE = "tests.classification.worlds"


def test_models_come_from_factories_and_from_folders(tmp_path: Path, tiny_model: Path) -> None:
    images = {"pixel_values": torch.rand(3, *SHAPE)}
    texts = {"input_ids": torch.ones(3, 5, dtype=torch.long), "attention_mask": torch.ones(3, 5, dtype=torch.long)}
    vit, bert = make_tiny_vit(tmp_path / "vit"), make_tiny_bert(tmp_path / "bert", tiny_model)
    for name, inputs in (
        (f"{HERE}:tiny_net", images),
        (str(vit), images),
        (f"{HERE}:tiny_reader", texts),
        (str(bert), texts),
    ):
        model = load_classifier(name, is_text=inputs is texts)
        assert not model.training
        assert logits_of(model, inputs).shape == (3, NUM_CLASSES)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("no.such.package:model", "cannot be called"),
        (f"{HERE}:nothing", "cannot be called"),
        (f"{HERE}:make_tiny_vit", "cannot be called"),
        (f"{HERE}:no_model", "gives int"),
        ("/no/such/folder", "no model that classifies images"),
    ],
)
def test_what_is_no_model_is_told(name: str, problem: str) -> None:
    with pytest.raises(CorpusError, match=problem):
        load_classifier(name, is_text=False)


def test_a_factory_is_told_from_folders_and_hub_names() -> None:
    assert is_factory("package.module:make")
    assert not any(map(is_factory, ("google/vit", "/a/folder", "s3://bucket:x", "C:\\models", "package.module")))


def test_equal_weights_have_equal_fingerprints_and_no_others() -> None:
    model, other = tiny_net(), tiny_net()
    assert fingerprint(model) == fingerprint(other)
    with torch.no_grad():
        next(other.parameters()).view(-1)[0] += 1e-6
    assert fingerprint(model) != fingerprint(other)
    assert fingerprint(nn.Linear(2, 3)) != fingerprint(nn.Linear(3, 2))


def test_what_gives_no_logits_is_told() -> None:
    with pytest.raises(CorpusError, match=r"must give logits \[rows, classes\], not \(2, 3, 4\) for 2 rows"):
        logits_of(nn.Identity(), {"inputs": torch.zeros(2, 3, 4)})
