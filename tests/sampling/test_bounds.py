import math
from dataclasses import dataclass, field
from typing import Literal

import pytest

from replay_service.sampling.bounds import check_bounds, choices_of, description_of

Colour = Literal["red", "green"]


@dataclass(frozen=True)
class Settings:
    size: int = field(default=5, metadata={"description": "How large.", "ge": 1, "le": 10})
    share: float = field(default=0.5, metadata={"description": "How much.", "gt": 0, "lt": 1})
    shift: float = field(default=0.0, metadata={"description": "How far.", "allow_inf_nan": False})
    names: tuple[str, ...] = field(default=("a",), metadata={"description": "Whose.", "min_length": 1, "max_length": 2})
    colour: Colour | Literal["any"] = field(default="any", metadata={"description": "In which colour."})
    limit: int | None = field(default=None, metadata={"description": "None: no limit.", "ge": 1})


def test_values_within_their_bounds_pass() -> None:
    check_bounds(Settings())
    check_bounds(Settings(1, 0.01, -3.0, ("a", "b"), "red", 1))
    check_bounds(Settings(10, 0.99))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"size": 0}, "part.size must be at least 1, not 0"),
        ({"size": 11}, "part.size must be at most 10, not 11"),
        ({"size": math.nan}, "part.size must be at least 1, not nan"),
        ({"share": 0.0}, "part.share must be above 0, not 0.0"),
        ({"share": 1.0}, "part.share must be below 1, not 1.0"),
        ({"shift": math.inf}, "part.shift must be finite, not inf"),
        ({"names": ()}, r"part.names must be at least 1 long, not \(\)"),
        ({"names": ("a", "b", "c")}, "part.names must be at most 2 long"),
        ({"colour": "blue"}, "part.colour must be one of red, green, any, not blue"),
        ({"limit": 0}, "part.limit must be at least 1, not 0"),
    ],
)
def test_a_value_out_of_bounds_is_refused_with_its_name_and_the_bound(values: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=f"^{said}"):
        check_bounds(Settings(**values), "part.")  # type: ignore[arg-type]


def test_the_choices_of_a_type() -> None:
    assert choices_of(Colour) == ("red", "green")
    assert choices_of(Colour | Literal["any"]) == ("red", "green", "any")
    for other in (int, Colour | None, tuple[Colour, int]):
        assert choices_of(other) == ()


def test_the_description_of_a_field() -> None:
    assert description_of(Settings, "share") == "How much."
