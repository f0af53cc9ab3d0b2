"""`smalti zoo`: every published tokenizer with its facts, as text and as data."""

import json

from smalti.families import zoo
from tests.cli.test_surface import assert_one_line


def test_the_zoo_is_printed_whole_or_one_family_of_it(smalti):
    text = smalti("zoo").out
    rows = json.loads(smalti("zoo", "--json").out)
    assert [row["name"] for row in rows] == [row.name for row in zoo()]
    for row in rows:
        assert row["name"] in text
        assert f"{row['parameters']:,} parameters" in text
        assert row["load"] == f'tokenizer = smalti.load("{row["name"]}")'
    family = smalti("zoo", "vidtok").out
    assert "vidtok_fsq_causal_488_32768_v1_1.ckpt" in family
    assert "showlab" not in family


def test_an_unknown_family_is_one_line_with_the_nearest_name(smalti):
    assert_one_line(smalti("zoo", "vidtock"), 2, "did you mean 'vidtok'")
