"""Recipes: one word that chooses how a job rehearses. A key that is written beside it always wins.

The service plans by a run's settings, and a loop weighs rows by its own; a recipe states both. `recommended` is what
`docs/evidence.md` supports. `papers` is what the papers of the methods chose: mix-cd draws by token flips and learns
with cross-entropy (Bai et al., 2025), at the injection ratio of Bethune et al. (2025).
"""

from collections.abc import Mapping
from typing import Any, Final, Literal

Recipe = Literal["recommended", "papers"]
Aim = Literal["mean", "worst"]

RECIPES: Final[Mapping[str, Mapping[str, Any]]] = {
    "recommended": {
        "injection_ratio": "0.05",
        "rehearsal_loss": "distill",
        "rehearsal_weight": 3.0,
        "teacher": "auto",
        "policy": "mix_cd",
    },
    "papers": {
        "injection_ratio": "0.01",
        "rehearsal_loss": "cross_entropy",
        "rehearsal_weight": 1.0,
        "policy": "mix_cd",
        "signal": "token_flip",
        "sharpness": 1.0,
    },
}

OBJECTIVES: Final[Mapping[str, Mapping[str, Any]]] = {
    "mean": {"signal": "excess_loss", "sharpness": 1.0},
    "worst": {"signal": "excess_loss", "sharpness": 2.0},
}
"""What recipe `recommended` draws by, for the least mean forgetting or for the least of the worst domain."""


def recipe_keys(section: Mapping[str, Any]) -> dict[str, Any]:
    """The keys that the recipe of a section `[rehearsal]` sets; none without a known one."""
    recipe, objective = section.get("recipe"), section.get("objective") or "mean"
    keys = dict(RECIPES.get(str(recipe), {}))
    return keys | dict(OBJECTIVES.get(str(objective), {})) if recipe == "recommended" else keys


def with_recipe(section: Mapping[str, Any]) -> dict[str, Any]:
    """A section `[rehearsal]` with the keys that its recipe sets.

    Raises:
        ValueError: when there is an objective and no recipe that takes one.
    """
    if section.get("objective") is not None and section.get("recipe") != "recommended":
        raise ValueError(
            'an objective goes with recipe = "recommended", whose signal and sharpness it chooses; write that recipe, '
            "or signal and sharpness in place of the objective"
        )
    return {**recipe_keys(section), **section}
