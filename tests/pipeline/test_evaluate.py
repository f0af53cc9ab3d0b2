"""`smalti.evaluate` does what `smalti eval` does, takes a loaded tokenizer too, and prints nothing."""

import json
import shutil

import pytest

import smalti
from smalti.data import bundled, read_image
from smalti.errors import ConfigError, InputError
from smalti.metrics import Report
from tests.token_sets import make_set, save_tokenizer

PHOTOS = bundled.photos("heldout")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return save_tokenizer(tmp_path_factory.mktemp("evaluate") / "tokenizer")


def test_a_name_a_path_and_a_tokenizer_give_one_report_and_print_nothing(tokenizer, tmp_path, capsys):
    steps = []
    result = smalti.evaluate(
        str(tokenizer), PHOTOS, size=32, limit=3, progress=lambda done, total=None, note="": steps.append((done, total))
    )
    assert steps == [(1, 3), (2, 3), (3, 3)]
    assert (result.clips, result.bad, list(result.columns)) == (3, [], ["original", "reconstruction"])
    for target in (tokenizer, smalti.load(tokenizer), [tokenizer]):
        assert smalti.evaluate(target, str(PHOTOS), size=32, limit=3).report == result.report
    result.write(tmp_path / "out")
    assert Report.parse(json.loads((tmp_path / "out" / "report.json").read_text())) == result.report
    assert read_image(tmp_path / "out" / "sheet.png").shape[1] >= 3 * 32
    assert capsys.readouterr() == ("", "")


def test_folders_and_token_sets_have_a_sheet_too(tokenizer, tmp_path):
    media = tmp_path / "media"
    shutil.copytree(PHOTOS, media)
    make_set(tokenizer, media, tmp_path / "tokens")
    for target, options in ((tmp_path / "tokens", {"data": media, "limit": 2}), (media, {"against": media})):
        result = smalti.evaluate(target, **options)
        assert len(result.columns["original"]) == min(8, result.clips)
        result.write(tmp_path / "out")
        assert read_image(tmp_path / "out" / "sheet.png").numel()


def test_contradicting_arguments_are_refused(tokenizer):
    with pytest.raises(ConfigError, match="`data` FOLDER"):
        smalti.evaluate(tokenizer)
    with pytest.raises(ConfigError, match="is given twice"):
        smalti.evaluate([tokenizer, tokenizer], PHOTOS)
    with pytest.raises(ConfigError, match="no protocol is called 'psnr'"):
        smalti.evaluate(tokenizer, PHOTOS, protocol="psnr")
    with pytest.raises(InputError):
        smalti.evaluate(tokenizer, PHOTOS / "none")
