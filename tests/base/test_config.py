"""Laws of `smalti.config`: what goes in comes out, nothing is coerced, nothing is run, and every fault is one line."""

from typing import Annotated, ClassVar, Literal

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import Field

from smalti.config import Config, PathField, Triple, Tuple, Two, load_yaml, parse_yaml
from smalti.errors import ConfigError
from smalti.quantize import DSQConfig, FSQConfig, LFQConfig, QuantizerConfig
from smalti.tokenizer import TokenizerConfig


class Round(Config):
    kind: Literal["round"] = "round"
    radius: float = 1.0


class Square(Config):
    kind: Literal["square"] = "square"
    side: float = 1.0
    corner: Round | None = None


Shape = Annotated[Round | Square, Field(discriminator="kind")]


class Plan(Config):
    steps: int = Field(10, ge=1)
    rate: float = 1e-3
    name: str = "plan"
    strict: bool = True
    sizes: Tuple[int] = (1, 2)
    box: Triple[int] = (1, 2, 3)
    path: PathField | None = None
    shape: Shape = Round()
    extra: Shape | None = None
    square: Square | None = None
    weights: dict[str, float] = Field({"mse": 1.0})


def one_line(fault: pytest.ExceptionInfo[ConfigError]) -> str:
    message = str(fault.value)
    assert "\n" not in message
    assert 0 < len(message) < 600
    assert fault.value.exit_code == 2
    return message


def read(text: str) -> Plan:
    return Plan.parse(parse_yaml(text, where="plan.yaml"), where="plan.yaml")


def refused(text: str) -> str:
    with pytest.raises(ConfigError) as fault:
        read(text)
    message = one_line(fault)
    assert message.startswith("plan.yaml: ")
    return message


def not_overridden(plan: Config, *assignments: str) -> str:
    with pytest.raises(ConfigError) as fault:
        plan.override(assignments)
    message = one_line(fault)
    assert message.startswith("`set`")
    return message


PLANS = st.builds(
    Plan,
    steps=st.integers(1, 2**62),
    rate=st.floats(allow_nan=False, allow_infinity=False),
    name=st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    strict=st.booleans(),
    sizes=st.lists(st.integers(-9, 9), max_size=4).map(tuple),
    path=st.none() | st.sampled_from(["a/b.png", "2020-01-01", "1e-4", "ünï/c d", "~", "on"]),
    shape=st.builds(Round, radius=st.floats(0, 1)) | st.builds(Square, corner=st.builds(Round)),
    weights=st.dictionaries(st.text("abl-:# 1e.", max_size=5), st.floats(-1e9, 1e9), max_size=3),
)


@settings(max_examples=60, deadline=None)
@given(PLANS)
@example(Plan(name="1e-4"))
@example(Plan(name="yes"))
@example(Plan(name="1:30"))
@example(Plan(name="line\nbreak: {a"))
@example(Plan(name="\x85"))
@example(Plan(name="a\u2028b\ufeff"))
@example(Plan(rate=1e308, weights={"1e5": 1.0, "null": 2.0}))
def test_yaml_gives_back_an_equal_config(plan):
    assert read(plan.to_yaml()) == plan
    assert Plan.parse(plan.plain()) == plan


@settings(max_examples=40, deadline=None)
@given(PLANS)
def test_yaml_is_read_alike_by_readers_of_yaml_1_1(plan):
    import yaml

    assert Plan.parse(yaml.safe_load(plan.to_yaml())) == plan


@pytest.mark.parametrize(
    "config",
    [
        TokenizerConfig(),
        TokenizerConfig(quantizer=LFQConfig(bits=9), time_kernel=3, strides=((1, 2), (2, 2)), past_kernel="full"),
        TokenizerConfig(quantizer=DSQConfig(levels=(8, 5)), multipliers=(1,), strides=(), norm="clip"),
    ],
)
def test_a_tokenizer_config_survives_a_file(config, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(config.to_yaml(), encoding="utf-8")
    assert load_yaml(TokenizerConfig, path) == config
    path.write_text(config.to_yaml(), encoding="utf-8-sig")  # with the mark that some editors add
    assert load_yaml(TokenizerConfig, path) == config


@pytest.mark.parametrize("text", ["1e-4", "1E-4", "1.0e-4", "0.0001", ".0001", "+1e-04", "100.e-6"])
def test_floats_are_read_as_people_write_them(text):
    assert read(f"rate: {text}").rate == 1e-4
    assert Plan().override([f"rate={text}"]).rate == 1e-4


@pytest.mark.parametrize(("text", "value"), [("true", True), ("True", True), ("false", False), ("FALSE", False)])
def test_booleans_are_true_and_false(text, value):
    assert read(f"strict: {text}").strict is value


@pytest.mark.parametrize(
    "text", ["yes", "no", "on", "off", "y", "n", "1:30", "017", "2020-01-01", "=", "0x", "1e", "e5"]
)
def test_what_only_yaml_1_1_takes_for_something_else_is_a_string(text):
    assert read(f"name: {text}").name == text
    for field in ("strict", "steps", "rate"):
        assert f"{field}: " in refused(f"{field}: {text}")


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("steps: '3'", "steps"),
        ("steps: 3.0", "steps"),
        ("steps: true", "steps"),
        ("steps: 0", "steps"),
        ("rate: '1e-4'", "rate"),
        ("rate: true", "rate"),
        ("name: 3", "name"),
        ("strict: 1", "strict"),
        ("sizes: [1, '2']", "sizes.1"),
        ("sizes: 1", "sizes"),
        ("box: [1, 2]", "box"),
        ("path: 3", "path"),
        ("weights: {mse: x}", "weights.mse"),
        ("shape: {kind: round, radius: [1]}", "shape.radius"),
        ("shape: {kind: square, corner: {radius: x}}", "shape.corner.radius"),
        ("shape: {kind: square, corner: 3}", "shape.corner"),
        ("square: {corner: {radius: x}}", "square.corner.radius"),
        ("name:", "name"),
    ],
)
def test_nothing_is_coerced_and_the_dotted_path_is_named(text, where):
    assert refused(text).startswith(f"plan.yaml: {where}: ")


@pytest.mark.parametrize("text", ["rate: .inf", "rate: -.inf", "rate: .nan", "weights: {a: .inf}"])
def test_a_number_of_a_config_is_finite(text):
    assert "finite number" in refused(text)


def test_an_integer_is_a_float():
    assert read("rate: 3").rate == 3.0


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("step: 3", "step: no such field; did you mean 'steps'?"),
        ("shape: {kind: square, syde: 3}", "shape.syde: no such field; did you mean 'side'? (there are: corner, kind,"),
        ("shape: {kind: round, side: 3}", "shape.side: no such field (there are: kind, radius)"),
        ("shape: {kind: square, corner: {radios: 3}}", "shape.corner.radios: no such field; did you mean 'radius'?"),
        (
            "extra: {kind: roundd}",
            "extra.kind: no such kind 'roundd'; did you mean 'round'? (there are: round, square)",
        ),
        ("shape: {radius: 3}", "shape: needs a kind"),
        ("box: [1]\nsteps: x", "[and "),
    ],
)
def test_a_wrong_name_is_answered_with_the_nearest_one(text, wanted):
    assert wanted in refused(text)


def test_a_missing_field_is_named():
    class Needs(Config):
        path: PathField
        inner: Round

    with pytest.raises(ConfigError, match=r"^here: inner: this field is required$"):
        Needs.parse({"path": "x"}, where="here")


def test_a_contradiction_is_told_without_the_name_of_an_exception():
    with pytest.raises(ConfigError) as fault:
        TokenizerConfig.parse({"quantizer": {"kind": "fsq", "levels": [8, 1]}}, where="a.json")
    assert one_line(fault) == "a.json: quantizer: every channel needs at least 2 levels (found [8, 1])"
    with pytest.raises(ConfigError) as fault:
        TokenizerConfig().override(["strides=[]"])
    assert one_line(fault) == "`set`: strides must be one fewer than multipliers (found 0 and 3)"


@pytest.mark.parametrize(
    ("assignments", "change"),
    [
        (["steps=20"], {"steps": 20}),
        (["steps=20", "steps=30"], {"steps": 30}),
        (["rate=1e-4", "name=a=b"], {"rate": 1e-4, "name": "a=b"}),
        (["name="], None),
        ([" sizes = [3, 4, 5] "], {"sizes": (3, 4, 5)}),
        (["weights.lpips=0.5"], {"weights": {"mse": 1.0, "lpips": 0.5}}),
        (["shape.radius=2"], {"shape": Round(radius=2.0)}),
        (["shape.kind=square", "shape.side=2"], {"shape": Square(side=2.0)}),
        (["shape.side=2", "shape.kind=square"], {"shape": Square(side=2.0)}),
        (["shape.kind=round", "shape.radius=3"], {"shape": Round(radius=3)}),
        (["extra.kind=square", "extra.corner.radius=3"], {"extra": Square(corner=Round(radius=3))}),
        (["extra.corner.radius=3", "extra.kind=square"], {"extra": Square(corner=Round(radius=3))}),
        (["square.side=4"], {"square": Square(side=4.0)}),
        (["square.corner.radius=4"], {"square": Square(corner=Round(radius=4.0))}),
        (["extra={kind: square, side: 2}"], {"extra": Square(side=2.0)}),
        (["path=/data/here"], {"path": "/data/here"}),
    ],
)  # fmt: skip
def test_overrides_change_what_they_name_and_nothing_else(assignments, change):
    plan = Plan()
    if change is None:
        assert "name: " in not_overridden(plan, *assignments)
        return
    assert plan.override(assignments) == Plan(**change)
    assert plan == Plan()


def test_an_optional_section_can_be_set_to_null_and_back():
    plan = Plan(square=Square())
    assert plan.override(["square=null"]) == Plan()
    assert plan.override(["square=null", "square.side=3"]) == Plan(square=Square(side=3.0))


@pytest.mark.parametrize(
    ("assignment", "wanted"),
    [
        ("steps", "expected field=value, as in steps=1000"),
        ("=3", "expected field=value"),
        ("a..b=3", "expected field=value"),
        ("shpe.radius=3", "shpe: no such field; did you mean 'shape'?"),
        ("steps.x=3", "steps is not a section but one value"),
        ("sizes.0=3", "sizes is not a section but one value"),
        ("shape.radios=3", "shape.radios: no such field; did you mean 'radius'?"),
        ("extra.side=3", "extra: needs a kind"),
        ("shape.kind=rond", "shape.kind: no such kind 'rond'; did you mean 'round'?"),
        ("steps=many", "steps: "),
        ("steps=[", "not valid YAML"),
        ("steps={a: 1, a: 2}", "stands twice"),
        ("a\nb.c\n=3\n", "a b: no such field"),
    ],
)
def test_a_wrong_override_is_one_line_that_shows_it(assignment, wanted):
    assert wanted in not_overridden(Plan(), assignment)


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.system ['true']",
        "name: !!python/name:os.system",
        "name: !!python/object/new:type []",
        "name: !!str 3",
        "name: !own 3",
        "steps: !!int ''",
        "strict: !!bool foo",
        "name: !!timestamp foo",
        "name: !!binary '%%'",
    ],
)
def test_tags_are_refused(text):
    assert "tags are not allowed" in refused(text)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("steps: 1\nsteps: 2", "'steps' stands twice (line 2)"),
        ("shape:\n  kind: round\n  kind: square", "'kind' stands twice (line 3)"),
        ("? [1]\n: 2", "a key must be a name"),
        ("1: 2", "1: "),
        ("<<: {steps: 3}", "<<: no such field"),
        ("name: &a x\npath: *a", "aliases"),
        ("a: " + "[" * 5000, "nested too deeply"),
        ("steps: " + "9" * 5000, "digits"),
        ("steps: " + "9" * 400, "more than 64 bits (line 1)"),
        ("steps: 1\nseed: 0x" + "f" * 6000, "more than 64 bits (line 2)"),
        ("name: \0", "not valid YAML"),
        ("", "it is empty: give its fields"),
        ("[1, 2]", "[1, 2] is no set of fields: give its fields"),
        ("steps: 1\n---\nsteps: 2", "not valid YAML"),
        ("a: 'b", "not valid YAML"),
        ("x: " + "y" * (1 << 20), "at most 1,048,576 are read"),
    ],
)
def test_yaml_that_means_two_things_or_none_is_refused(text, wanted):
    assert wanted in refused(text)


def test_a_billion_laughs_are_refused_at_once():
    levels = "\n".join(f"l{i + 1}: &l{i + 1} [{', '.join([f'*l{i}'] * 9)}]" for i in range(9))
    assert "aliases" in refused(f"l0: &l0 ha\n{levels}")


def test_many_keys_cost_no_more_than_they_weigh():
    # 5,000 keys compared pairwise would be 1e7 comparisons; through a set they are a part of the parsing.
    assert "[and 4999 more]" in refused("{" + ", ".join(f"k{i}: 1" for i in range(5_000)) + "}")


def test_a_long_wrong_value_is_shown_in_short():
    assert "(100,002 characters)" in refused("steps: " + "y" * 100_000)


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        ("steps: 3\nname: grün".encode("utf-16"), "cannot be read as UTF-8"),
        ("name: grün".encode("latin-1"), "cannot be read as UTF-8"),
        (b"\xff\xfe\x00\x00", "cannot be read as UTF-8"),
        (b"steps: many", "steps: "),
    ],
)
def test_a_file_that_is_not_a_config_is_named(content, wanted, tmp_path):
    path = tmp_path / "plan.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as fault:
        load_yaml(Plan, path)
    message = one_line(fault)
    assert message.startswith(f"{path}: ")
    assert wanted in message


def test_a_file_that_is_not_there_or_a_folder_is_named(tmp_path):
    for path in (tmp_path / "absent.yaml", tmp_path):
        with pytest.raises(ConfigError) as fault:
            load_yaml(Plan, path)
        assert one_line(fault).startswith(f"{path}: ")


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=40) | st.text("ab:-[]{}&*!?|>'\"%@`#, \n1e.", max_size=40))
def test_any_text_is_data_or_one_line(text):
    fault = None
    try:
        parse_yaml(text, where="here")
    except ConfigError as error:
        fault = str(error)
    assert fault is None or "\n" not in fault


def test_a_config_is_frozen_and_hashable():
    config = TokenizerConfig()
    with pytest.raises(ValueError, match="frozen"):
        config.width = 3  # type: ignore[misc]
    assert hash(config) == hash(TokenizerConfig())


@pytest.mark.parametrize("config", [LFQConfig(bits=3), FSQConfig(levels=(4, 3)), DSQConfig(levels=(4, 3))])
def test_a_kind_says_which_class_builds(config):
    class Holder(Config):
        quantizer: QuantizerConfig

    read_back = Holder.parse({"quantizer": config.plain()}).quantizer
    assert read_back == config
    assert type(read_back.build()) is type(config.build())


class Former(Config):
    old_size: int = 3


class Renamed(Config):
    former_names: ClassVar = {"old_size": "size", "old_shape": "shape"}

    size: int = 3
    shape: Shape = Round()


class Holder(Config):
    part: Renamed = Renamed()


def test_a_former_name_is_read_never_written_and_stays_in_what_fingerprints_hash():
    new = Renamed.parse({"size": 4, "shape": {"kind": "square"}})
    assert Renamed.parse({"old_size": 4, "old_shape": {"kind": "square"}}) == new
    assert set(new.plain()) == {"size", "shape"}
    assert Renamed(size=4).essence() == Former(old_size=4).essence() == {"old_size": 4}
    assert Holder.parse({"part": {"old_size": 4}}).part.size == 4
    assert Renamed.parse({"size": 3}).essence() == {}


def test_faults_behind_a_former_name_are_named_as_the_user_wrote_them():
    for data, parts in (
        ({"part": {"old_size": "many"}}, ["part.old_size: ", "(old_size is size now)"]),
        ({"part": {"old_shape": {"kind": "square", "sid": 2}}}, ["part.old_shape.sid: no such field", "'side'"]),
        (
            {"part": {"old_shape": {"kind": "square", "side": "a"}}},
            ["part.old_shape.side: ", "(old_shape is shape now)"],
        ),
        ({"part": {"old_size": 1, "size": 2}}, ["part.old_size: no such field; its name is 'size' now"]),
    ):
        with pytest.raises(ConfigError) as fault:
            Holder.parse(data)
        assert all(part in one_line(fault) for part in parts), one_line(fault)
    assert "its name is 'size' now" in not_overridden(Renamed(), "old_size=5")


def test_a_tuple_field_takes_a_list_alone_and_in_a_union():
    """pydantic before 2.11 does not hear `Strict(False)` inside a union."""

    class Sized(Config):
        size: int | Two[int] | None = None
        depth: int | Tuple[int] = 1
        box: Triple[int] = (1, 2, 3)

    sized = Sized.parse({"size": [8, 16], "depth": [1, 2], "box": [4, 5, 6]})
    assert (sized.size, sized.depth, sized.box) == ((8, 16), (1, 2), (4, 5, 6))
    assert Sized.parse({"size": 8, "depth": 3}).size == 8
    for wrong in ({"size": [8, 16, 24]}, {"size": ["8", 16]}, {"depth": [1.5]}, {"box": "456"}):
        with pytest.raises(ConfigError):
            Sized.parse(wrong)
