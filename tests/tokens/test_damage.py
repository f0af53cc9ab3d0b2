"""Changed inputs, weights, options and disks, shards of elsewhere: refused by name, before a token is used."""

import resource
import shutil
from pathlib import Path

import pytest
import torch

from smalti.errors import ConfigError, InputError, IntegrityError, MachineError
from smalti.tokens.config import TokenizeOptions
from smalti.tokens.plan import load_plan
from smalti.tokens.pool import PoolLimits, run_pool
from smalti.tokens.reader import TokenSet
from smalti.tokens.shard import pending_shards, read_report
from smalti.tokens.tokenize import make_shards
from tests.token_sets import corpus, digest, encoded, make_set, picture, prepare, save_tokenizer, start_child

OPTIONS = TokenizeOptions(shard_files=4)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("damage")
    save_tokenizer(folder / "tokenizer")
    corpus(folder / "data", good=12, bad=0)
    make_set(folder / "tokenizer", folder / "data", folder / "set", options=OPTIONS)
    return folder


def use(path: Path) -> None:
    """Read everything that there is of a set."""
    plan = load_plan(path)
    for shard in range(plan.shards):
        assert read_report(plan, shard) is not None
        plan.inputs_of(shard)
    for _ in TokenSet(path):
        pass


@pytest.mark.parametrize(("a", "b"), [(0, 1), (1, 2), (2, 0)])
def test_swapped_shards_are_refused_with_the_name_of_one(made, tmp_path, a, b):
    copy = tmp_path / "set"
    shutil.copytree(made / "set", copy)
    plan = load_plan(copy)
    for path in (plan.shard_path, plan.report_path):
        first, second = path(a).read_bytes(), path(b).read_bytes()
        path(a).write_bytes(second)
        path(b).write_bytes(first)
        with pytest.raises(IntegrityError, match=rf"tokens-0000[{a}{b}]-of-00003"):
            use(copy)
        path(a).write_bytes(first)
        path(b).write_bytes(second)


def test_parts_of_another_set_are_refused(made, tmp_path):
    other = tmp_path / "other"
    make_set(made / "tokenizer", made / "data", other, options=OPTIONS.replace({"size": 16}))
    for name in ("data/tokens-00001-of-00003.parquet", "reports/tokens-00001-of-00003.json", "dataset.json"):
        copy = tmp_path / name.replace("/", "-")
        shutil.copytree(made / "set", copy)
        shutil.copy(other / name, copy / name)
        with pytest.raises(IntegrityError, match=r"tokens-0000\d-of-00003"):
            use(copy)


def test_missing_and_foreign_shards_are_named(made, tmp_path):
    copy = tmp_path / "set"
    shutil.copytree(made / "set", copy)
    (copy / "data" / "extra.parquet").write_bytes(b"x")
    with pytest.raises(IntegrityError, match=r"extra\.parquet: is no shard of this set"):
        TokenSet(copy)
    (copy / "data" / "extra.parquet").unlink()
    load_plan(copy).shard_path(2).unlink()
    with pytest.raises(IntegrityError, match=r"tokens-00002-of-00003\.parquet: is missing"):
        TokenSet(copy)
    with pytest.raises(InputError, match=r"no token set \(it has no dataset\.json\)"):
        TokenSet(made / "data")


@pytest.fixture
def begun(made, tmp_path):
    """A copy of the data, and a set of it of which one shard is done."""
    shutil.copytree(made / "data", tmp_path / "data")
    make_set(made / "tokenizer", tmp_path / "data", tmp_path / "set", options=OPTIONS, part=(0, 3))
    return tmp_path


def test_a_changed_input_is_named_when_the_work_goes_on(made, begun):
    name = sorted(path.name for path in (begun / "data").iterdir())[5]
    path = begun / "data" / name
    data = path.read_bytes()
    path.write_bytes(data + b"more")
    with pytest.raises(InputError, match=f"{name} had {len(data):,} bytes and has {len(data) + 4:,}"):
        make_set(made / "tokenizer", begun / "data", begun / "set", options=OPTIONS)
    path.write_bytes(data)
    (begun / "data" / "new.png").write_bytes(encoded(picture(16, 16), "PNG"))
    with pytest.raises(InputError, match=r"new\.png is new"):
        make_set(made / "tokenizer", begun / "data", begun / "set", options=OPTIONS)
    (begun / "data" / "new.png").unlink()
    path.unlink()
    with pytest.raises(InputError, match=f"was {name}"):
        make_set(made / "tokenizer", begun / "data", begun / "set", options=OPTIONS)
    path.write_bytes(data)
    make_set(made / "tokenizer", begun / "data", begun / "set", options=OPTIONS)
    assert digest(begun / "set") == digest(made / "set")


def test_an_input_that_changes_after_the_plan_is_a_bad_file(made, begun):
    name = sorted(path.name for path in (begun / "data").iterdir())[5]
    prepared = prepare(made / "tokenizer", begun / "data", begun / "set", OPTIONS)
    (begun / "data" / name).write_bytes(b"other")
    make_shards(prepared.plan, prepared.worker, pending_shards(prepared.plan))
    report = read_report(prepared.plan, 1)
    assert [(fault.key, fault.code) for fault in report.bad] == [(name, "changed")]
    assert report.ok + len(report.bad) == report.listed


def test_changed_weights_are_refused(made, begun, tmp_path):
    other = save_tokenizer(tmp_path / "other", seed=1)
    with pytest.raises(IntegrityError, match="begun with the tokenizer"):
        make_set(other, begun / "data", begun / "set", options=OPTIONS)
    with pytest.raises(IntegrityError, match="its ids mean nothing"):
        prepare(other, begun / "data", begun / "set", OPTIONS, resume=True)
    plan = load_plan(begun / "set")
    worker = prepare(made / "tokenizer", begun / "data", begun / "set", OPTIONS).worker
    worker = worker._replace(tokenizer=str(other))
    with pytest.raises(IntegrityError, match="its ids mean nothing"):
        make_shards(plan, worker, [1])
    with pytest.raises(IntegrityError, match="its ids mean nothing"):
        run_pool(plan, worker, [1], PoolLimits(workers=1))


def test_other_options_are_refused_by_name(made, begun):
    with pytest.raises(ConfigError, match="begun with size None \\(now 16\\)"):
        make_set(made / "tokenizer", begun / "data", begun / "set", options=OPTIONS.replace({"size": 16}))
    with pytest.raises(ConfigError, match="is no token set; choose another `out`"):
        make_set(made / "tokenizer", begun / "data", begun / "data", options=OPTIONS)


def test_options_beside_a_plan_that_is_taken_as_it_is_are_those_of_the_plan(made, begun):
    prepare(made / "tokenizer", begun / "data", begun / "set", OPTIONS, resume=True)
    prepare(made / "tokenizer", begun / "data", begun / "set", TokenizeOptions(), resume=True)
    for name, value in (("size", 16), ("precision", "bfloat16")):
        with pytest.raises(ConfigError, match=f"begun with {name} None \\(now {value}\\)"):
            prepare(made / "tokenizer", begun / "data", begun / "set", OPTIONS.replace({name: value}), resume=True)


def test_a_full_disk_is_one_line_and_the_rest_follows_later(made, tmp_path):
    out, told = tmp_path / "set", tmp_path / "told"
    plan, worker, _ = prepare(made / "tokenizer", made / "data", out, OPTIONS)

    def write() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))
        try:
            make_shards(plan, worker, pending_shards(plan))
        except MachineError as fault:
            told.write_text(str(fault))

    import os

    os.waitpid(start_child(write), 0)
    assert "File too large. Raise the limit on file sizes" in told.read_text()
    assert not list((out / "data").iterdir())
    make_set(made / "tokenizer", made / "data", out, options=OPTIONS)
    assert digest(out) == digest(made / "set")


def test_a_latent_that_is_not_finite_is_a_bad_file(made, tmp_path):
    import smalti

    tokenizer = smalti.load(made / "tokenizer")
    with torch.no_grad():
        next(tokenizer.encoder.parameters()).fill_(3e38)  # finite, as a file must be; sums of it are not
    tokenizer.save(tmp_path / "tokenizer")
    summary = make_set(tmp_path / "tokenizer", made / "data", tmp_path / "set", options=OPTIONS)
    assert summary.codes == {"not-finite": summary.listed}
