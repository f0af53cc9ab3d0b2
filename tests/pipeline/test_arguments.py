"""A table of the product's functions and of wrong arguments: each is one line that names the argument."""

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, get_type_hints

import pytest

import smalti
from smalti.arguments import _alternatives, _is_list, check_arguments
from smalti.errors import BadTensor, ConfigError, SmaltiError
from smalti.families import load

DOORS: dict[str, Callable[..., Any]] = {
    name: getattr(smalti, name) for name in smalti.__all__ if inspect.isfunction(getattr(smalti, name))
}
DOORS |= {f"Tokenizer.{name}": getattr(smalti.Tokenizer, name) for name in ("load", "save", "push_to_hub")}


class Odd:
    """A value of no kind that any option has."""


def wrong_values(hint: object) -> list[object]:
    """Values that an annotation does not take; of its alternatives, none does."""
    kinds = _alternatives(hint)
    wrong: list[object] = [Odd()]
    if str in kinds or Path in kinds:
        wrong += ["", " "] if str in kinds else []
        wrong += [b"x"] if int not in kinds and not any(map(_is_list, kinds)) else []
    if int not in kinds and float not in kinds:
        wrong += [3, 1.5]
    if int in kinds and float not in kinds:
        wrong += [1.5]
    if float in kinds:
        wrong += [float("nan"), float("inf")]
    if bool not in kinds:
        wrong += [True]
    else:
        wrong += [1, "yes"]
    if not any(map(_is_list, kinds)) and not any(get_type_is_tuple(kind) for kind in kinds):
        wrong += [[1]]
    if any(map(_is_list, kinds)):
        wrong += [[Odd()]] + ([] if str in kinds else ["text"])
    if str not in kinds and not any(map(_is_list, kinds)):
        wrong += ["neither"]
    return wrong


def get_type_is_tuple(kind: object) -> bool:
    return getattr(kind, "__origin__", None) is tuple


def arguments(function: Callable[..., Any], folder: Path) -> dict[str, object]:
    """The arguments without a default, each of a right type, none of which exists."""
    hints, found = get_type_hints(function), {}
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.default is inspect.Parameter.empty and name != "self":
            kinds = _alternatives(hints[name])
            found[name] = folder / name if Path in kinds else "text" if str in kinds else 3 if int in kinds else Odd()
            if any(map(_is_list, kinds)) and Path not in kinds:
                found[name] = [folder / name]
    return found


CASES = [
    pytest.param(door, name, number, id=f"{door}-{name}-{number}")
    for door, function in DOORS.items()
    for name, hint in get_type_hints(function).items()
    if name not in ("return", "self")
    for number in range(len(wrong_values(hint)))
]


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(("door", "name", "number"), CASES)
def test_a_wrong_argument_is_one_line_that_names_it(door, name, number, tmp_path):
    function = DOORS[door]
    if door == "compare" and name not in ("variants",):
        needed = {"variants": [smalti_variant()], **comparison(), "out": tmp_path / "out", "steps": 3}
    else:
        needed = arguments(function, tmp_path)
    if "self" in inspect.signature(function).parameters:
        function = getattr(tokenizer(), function.__name__)
    wrong = wrong_values(get_type_hints(DOORS[door])[name])[number]
    with pytest.raises((ConfigError, BadTensor)) as error:
        function(**{**needed, name: wrong})
    assert str(error.value).startswith(f"{name}: "), error.value
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def tokenizer() -> smalti.Tokenizer:
    return smalti.Tokenizer(smalti.TokenizerConfig(width=4, depth=1, decoder_depth=1, middle=0))


def smalti_variant() -> Any:
    from smalti.comparison import Variant

    return Variant(name="base")


def comparison() -> dict[str, Any]:
    from smalti.comparison import Budget, ComparisonData

    return {"data": ComparisonData(), "budget": Budget(amount=3.0)}


def test_there_is_a_table():
    assert len(DOORS) >= 14
    assert len(CASES) > 400


FOLDERS = [door for door, function in DOORS.items() if "out" in inspect.signature(function).parameters]


@pytest.mark.parametrize("door", FOLDERS)
@pytest.mark.parametrize("below", ["", "below", "below/below"])
def test_a_folder_to_write_that_is_a_file_is_refused_first(door, below, tmp_path):
    (tmp_path / "file").write_bytes(b"mine")
    needed = arguments(DOORS[door], tmp_path)
    if door == "reconstruct":
        needed["inputs"] = [tmp_path / "photo.jpg"]
    if door == "compare":
        needed = {"variants": [smalti_variant()], **comparison(), "steps": 3}
    with pytest.raises(ConfigError) as error:
        DOORS[door](**{**needed, "out": tmp_path / "file" / below})
    assert str(tmp_path / "file") in str(error.value)
    assert (tmp_path / "file").read_bytes() == b"mine"


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize("door", ["compress", "decompress"])
def test_a_file_to_write_that_is_a_folder_or_below_a_file_is_refused_first(door, tmp_path):
    (tmp_path / "file").write_bytes(b"mine")
    for target in (tmp_path, tmp_path / "file" / "a.smt"):
        with pytest.raises(ConfigError, match=r"is a folder|is a file"):
            DOORS[door](tmp_path / "a.jpg", target, "smalti/tiny-image", overwrite=True)


MISSING: dict[str, tuple[Callable[[Path], object], str]] = {
    "decode": (lambda path: smalti.decode(path, path.parent / "out"), "no such folder; give the folder that"),
    "export": (lambda path: smalti.export(path, path.parent / "out"), "no such file or folder; give a tokenizer"),
    "compress": (lambda path: smalti.compress(path, path.parent / "a.smt", tokenizer()), "no such file"),
    "decompress": (lambda path: smalti.decompress(path, path.parent / "a.png", tokenizer()), "no such file"),
    "reconstruct": (lambda path: smalti.reconstruct(tokenizer(), [path], path.parent / "out"), "no such file"),
    "generate": (lambda path: smalti.generate(path, path.parent / "out"), "no such folder; give a generator folder"),
    "evaluate": (lambda path: smalti.evaluate(tokenizer(), path), "no such file or folder"),
    "tokenize": (
        lambda path: smalti.tokenize("smalti/tiny-image", path, path.parent / "out"),
        "no such file or folder",
    ),
    "train": (lambda path: smalti.train(path.with_suffix(".yaml"), path.parent / "out"), "no such file"),
    "load": (lambda path: smalti.load(path), "no such file or folder; give a tokenizer folder"),
    "Tokenizer.load": (lambda path: smalti.Tokenizer.load(path), "no such folder; a tokenizer is a folder"),
}


@pytest.mark.parametrize("door", MISSING)
def test_what_is_not_there_is_named_and_nothing_else_is_said(door, tmp_path):
    call, said = MISSING[door]
    with pytest.raises(SmaltiError) as error:
        call(tmp_path / "absent")
    assert str(error.value).startswith(str(tmp_path / "absent"))
    assert said in str(error.value)
    assert "listed" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] in ([], ["out"])


def test_a_name_near_one_that_ships_is_asked_for():
    for name in ("tiny-image", "smalti/tiny-imag", "smalti/tinyvideo"):
        with pytest.raises(SmaltiError) as error:
            load(name)
        message = str(error.value)
        assert message.startswith(f"{name}: ")
        assert "did you mean 'smalti/tiny-" in message
        assert "snapshot" not in message


def test_a_hub_that_is_not_asked_is_said():
    with pytest.raises(SmaltiError, match=r"^nobody/nothing: no such folder here, and the hub was not asked, because"):
        load("nobody/nothing")


def test_a_device_that_is_not_there_is_one_line():
    for device in ("gpu", "cuda:99", "cpu:x"):
        with pytest.raises(SmaltiError, match=rf"^`device` {device}: not available here") as error:
            load("smalti/tiny-image", device)
        assert "\n" not in str(error.value)


def test_the_nearest_choice_is_asked_for():
    def sample(schedule: Literal["cosine", "linear"], names: Sequence[str] = ()) -> None:
        check_arguments(sample, locals())

    sample("cosine")
    sample("cosine", [])  # as the command line gives them
    with pytest.raises(
        ConfigError, match=r"^schedule: 'cosin' is none of 'cosine', 'linear'; did you mean 'cosine'\?$"
    ):
        sample("cosin")  # type: ignore[arg-type]
