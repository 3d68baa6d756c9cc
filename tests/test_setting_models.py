"""Models and options that are made of the fields of a dataclass."""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import pytest
import typer
from pydantic import BaseModel, Field, Strict, ValidationError
from typer.testing import CliRunner

from replay_service.setting_models import fields_of
from replay_service.setting_options import options_of, settings_options, with_options


@dataclass(frozen=True)
class Inner:
    depth: int = field(default=1, metadata={"description": "How deep.", "ge": 1})


@dataclass(frozen=True)
class Outer:
    name: str = field(metadata={"description": "Which.", "min_length": 1})
    size: int = field(default=5, metadata={"description": "How large.", "ge": 1, "le": 10})
    kind: Literal["a", "b"] | Literal["auto"] = field(default="auto", metadata={"description": "Of which kind."})
    pairs: tuple[tuple[int, str], ...] = field(default=(), metadata={"description": "Which pairs."})
    inner: Inner = field(default_factory=Inner, metadata={"description": "What is in it."})
    extra: Inner | None = field(default=None, metadata={"description": "What is in it too."})


TYPES: dict[Any, Any] = {int: Annotated[int, Strict()]}


@fields_of(Inner, types=TYPES)
class InnerModel(BaseModel):
    """Of the inside."""


@fields_of(Outer, types=TYPES | {Inner: InnerModel}, leave_out={"extra"}, names={"kind": "sort"}, defaults={"size": 7})
class Whole(BaseModel):
    """Of all."""

    mine: int = 3


@fields_of(Outer, types=TYPES | {Inner: InnerModel}, optional=True)
class Change(BaseModel):
    """Of changes."""


def make(model: type[BaseModel], **values: Any) -> dict[str, Any]:
    return model(**values).model_dump()


def test_a_model_has_the_defaults_of_the_dataclass_and_fields_of_its_own() -> None:
    made = make(Whole, name="x")
    assert made == {"mine": 3, "name": "x", "size": 7, "sort": "auto", "pairs": (), "inner": {"depth": 1}}
    assert (Whole.__name__, Whole.__doc__, Whole.__module__) == ("Whole", "Of all.", __name__)


def test_a_model_has_the_bounds_and_descriptions_of_the_dataclass() -> None:
    schema = Whole.model_json_schema()["properties"]
    assert schema["size"]["maximum"] == 10
    assert schema["size"]["description"] == "How large."
    assert schema["sort"]["enum"] == ["a", "b", "auto"]
    assert InnerModel.model_json_schema()["properties"]["depth"]["minimum"] == 1


@pytest.mark.parametrize(
    ("values", "place"),
    [
        ({}, ("name",)),
        ({"name": ""}, ("name",)),
        ({"name": "x", "size": 11}, ("size",)),
        ({"name": "x", "size": "5"}, ("size",)),
        ({"name": "x", "sort": "c"}, ("sort",)),
        ({"name": "x", "pairs": [["1", "x"]]}, ("pairs", 0, 0)),
        ({"name": "x", "inner": {"depth": 0}}, ("inner", "depth")),
    ],
)
def test_a_wrong_value_is_refused_where_it_stands(values: dict[str, Any], place: tuple[str | int, ...]) -> None:
    with pytest.raises(ValidationError) as refused:
        Whole(**values)
    assert [each["loc"] for each in refused.value.errors()] == [place]


def test_in_a_model_of_changes_every_field_may_be_left_out_and_keeps_its_bounds() -> None:
    assert set(make(Change).values()) == {None}
    assert make(Change, extra={"depth": 2})["extra"] == {"depth": 2}
    for wrong in ({"size": 0}, {"extra": {"depth": 0}}):
        with pytest.raises(ValidationError):
            Change(**wrong)


class Flags(BaseModel):
    port: int = Field(80, ge=0, le=9, description="Which port.")
    loud: bool = Field(False, description="Say more.")


def command_line(*arguments: str) -> tuple[int, str]:
    app = typer.Typer(pretty_exceptions_enable=False)

    @app.command()
    @with_options(
        options_of(Outer, leave_out={"pairs", "inner", "extra"}, names={"kind": "sort"}, defaults={"size": 7})
    )
    @with_options(settings_options(Flags, ["port", "loud"]))
    def show(own: int = 1, **options: Any) -> None:
        typer.echo(f"{own} {sorted(options.items())}")

    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "200", "NO_COLOR": "1"})
    return result.exit_code, result.output


def test_a_command_has_an_option_for_every_field() -> None:
    code, output = command_line("--name", "x", "--sort", "b", "--own", "2", "--loud")
    assert code == 0
    assert output == "2 [('loud', True), ('name', 'x'), ('port', None), ('size', 7), ('sort', 'b')]\n"


@pytest.mark.parametrize(
    "wrong", [["--size", "0"], ["--size", "11"], ["--sort", "c"], ["--size", "much"], ["--port", "10"]]
)
def test_an_option_has_the_bounds_of_its_field(wrong: list[str]) -> None:
    code, output = command_line("--name", "x", *wrong)
    assert code == 2
    assert wrong[0] in output


def test_the_help_says_what_the_fields_say() -> None:
    _, output = command_line("--help")
    for said in ("How large.", "1<=x<=10", "[default: 7]", "a|b|auto", "Which port.", "[default: (80)]", "--loud"):
        assert said in output
