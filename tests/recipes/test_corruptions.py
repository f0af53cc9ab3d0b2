"""Recipes with one character or one value wrong: one line of at most 300 characters that begins with file and field."""

import random
import string

import pytest
import yaml

from smalti.errors import ConfigError
from smalti.pipeline.train import find_config
from smalti.recipes import catalogue

NAMES = [recipe.name for recipe in catalogue()]
CHARACTERS = string.ascii_letters + string.digits + " :-[]{},'\"#&*!|>%@`\t."


def corrupted(text, rng):
    """The text with a character lost, put in, or changed."""
    at, way, other = rng.randrange(len(text)), rng.choice(["lose", "put", "change"]), rng.choice(CHARACTERS)
    return text[:at] + ("" if way == "lose" else other) + text[at + (way != "put") :]


def message_of(file):
    """The refusal of a training file; None where it is valid still."""
    try:
        find_config(file)
    except ConfigError as error:
        return str(error)
    return None


@pytest.mark.parametrize("count", [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_one_wrong_character_is_one_short_line_with_the_file(count, tmp_path):
    rng, file, messages = random.Random(0), tmp_path / "mine.yaml", []
    texts = {name: find_config(name).to_yaml() for name in NAMES}
    while len(messages) < count:
        file.write_text(corrupted(texts[rng.choice(NAMES)], rng), encoding="utf-8")
        message = message_of(file)
        messages += [] if message is None else [message]
    wrong = [m for m in messages if not m.startswith(f"{file}: ") or "\n" in m or len(m) - len(str(file)) > 300]
    assert not wrong, wrong[:5]


def leaves(data, path=()):
    """Paths of all values in a config, without the kinds, which say what the others mean."""
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        if isinstance(value, dict | list) and value:
            yield from leaves(value, (*path, key))
        elif key != "kind":
            yield (*path, key)


@pytest.mark.parametrize("name", random.Random(1).sample(NAMES, 6))
def test_one_wrong_name_or_value_is_told_by_its_path(name, tmp_path):
    rng, file, config = random.Random(name), tmp_path / "mine.yaml", find_config(name)
    for path in rng.sample(list(leaves(config.plain())), 12):
        data = config.plain()
        parent = data
        for key in path[:-1]:
            parent = parent[key]
        if isinstance(parent, dict) and path[0] != "weights":
            parent[f"{path[-1]}q"] = parent.pop(path[-1])
            wrong = (*path[:-1], f"{path[-1]}q")
        else:
            parent[path[-1]] = {"q": 1}
            wrong = path
        file.write_text(yaml.safe_dump(data, sort_keys=False), encoding="utf-8")
        assert message_of(file).startswith(f"{file}: {'.'.join(map(str, wrong))}"), message_of(file)


@pytest.mark.parametrize(
    ("recipe", "field"),
    [
        ("tiny", "batch_size"), ("tiny", "workers"), ("tiny", "tokenizer.depth"), ("image", "tokenizer.decoder_depth"),
        ("tiny", "tokenizer.middle"), ("tiny", "data.size"), ("tiny-video", "data.frames"),
        ("magicmaster-vqgan-style2-ep20", "tokenizer.depth"), ("tiny-generate", "batch_size"),
        ("magicmaster-vqgan-style2-ep20", "tokenizer.decoder_middle"), ("tiny-generate", "generator.depth"),
    ],
)  # fmt: skip
def test_a_number_that_no_machine_can_follow_is_refused(recipe, field, tmp_path):
    """Before 2**20 samples a step, lists of 10**12 were begun, which no signal ended."""
    config = find_config(recipe).plain()
    *parents, last = [int(key) if key.isdigit() else key for key in field.split(".")]
    parent = config
    for key in parents:
        parent = parent[key]
    parent[last] = 10**12
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    assert message_of(file).startswith(f"{file}: {field}: Input should be less than or equal to ")
