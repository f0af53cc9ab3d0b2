"""`smalti.files` under kills and full disks: a reader finds the old thing or the new one, whole."""

import os
import random
import resource
import signal
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from smalti import files
from smalti.errors import ConfigError, InputError, IntegrityError, MachineError, SmaltiError
from smalti.files import (
    check_manifest,
    hold_interrupt,
    load_tensors,
    lock,
    new_folder,
    read_json,
    remove_leftovers,
    save_tensors,
    write_bytes,
    write_json,
)

KILLED = -signal.SIGKILL


def start_child(work: Callable[[], object]) -> int:
    """A fork that does `work` and ends with 0, or with the exit code of the SmaltiError that it met; gives its id."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 on forks beside threads; these only wait
        process = os.fork()
    if process:
        return process
    code = 99
    try:
        work()
        code = 0
    except SmaltiError as error:
        code = error.exit_code
    finally:
        os._exit(code)


def ended(process: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def in_child(work: Callable[[], object], failpoint: str = "") -> int:
    def killable() -> None:
        os.environ["SMALTI_FAULT"] = failpoint
        work()

    return ended(start_child(killable))


def write_generation(path: Path, generation: int) -> None:
    """A folder whose three files all tell their generation."""
    with new_folder(path, replace=True) as part:
        for name in ("a.bin", "b.bin", "deep/c.bin"):
            write_bytes(part / name, generation.to_bytes(4, "little") * 5000)


def generation_of(path: Path) -> int:
    """Of a whole folder; fails where it is torn."""
    check_manifest(path)
    contents = {(path / name).read_bytes() for name in ("a.bin", "b.bin", "deep/c.bin")}
    assert len(contents) == 1, "files of two generations in one folder"
    content = contents.pop()
    assert content == content[:4] * 5000
    return int.from_bytes(content[:4], "little")


def names(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()}


def one_line(fault: pytest.ExceptionInfo[SmaltiError], path: Path) -> str:
    message = str(fault.value)
    assert "\n" not in message
    assert message.startswith(str(path))
    return message


def test_a_failpoint_kills_the_first_time_or_the_nth(tmp_path):
    def write() -> None:
        for number in range(5):
            write_bytes(tmp_path / f"{number}", b"new")

    for point, left in {"": {"0"}, "@1": {"0"}, "@3": {"0", "1", "2"}}.items():
        assert in_child(write, f"write_bytes:before-rename{point}") == KILLED
        remove_leftovers(tmp_path)
        assert names(tmp_path) == left - {max(left)}
        for path in tmp_path.iterdir():
            path.unlink()
    assert in_child(write, "write_bytes:before-rename@6") == 0


FOLDER_POINTS = ["before-manifest", "before-rename", "after-rename"]


@pytest.mark.parametrize("point", FOLDER_POINTS)
@pytest.mark.parametrize("there_before", [False, True])
def test_a_killed_writer_of_a_folder_leaves_the_old_one_or_the_new_one(point, there_before, tmp_path):
    path = tmp_path / "step-1"
    if there_before:
        write_generation(path, 1)
    assert in_child(lambda: write_generation(path, 2), f"new_folder:{point}") == KILLED
    if point == "after-rename":
        assert generation_of(path) == 2
    elif there_before:
        assert generation_of(path) == 1
    else:
        assert not path.exists()
    remove_leftovers(tmp_path)
    assert names(tmp_path) == ({"step-1"} if there_before or point == "after-rename" else set())
    write_generation(path, 3)
    assert generation_of(path) == 3


@pytest.mark.parametrize("point", [*FOLDER_POINTS, "between-renames"])
def test_where_two_names_cannot_be_exchanged_the_old_folder_comes_back(point, tmp_path):
    path = tmp_path / "step-1"
    write_generation(path, 1)

    def on_such_a_disk() -> None:
        files._exchange = lambda a, b: False  # type: ignore[assignment]  # what a network disk answers; only in the child
        write_generation(path, 2)

    assert in_child(on_such_a_disk, f"new_folder:{point}") == KILLED
    assert path.exists() is (point != "between-renames")
    remove_leftovers(tmp_path)
    assert generation_of(path) == (2 if point == "after-rename" else 1)
    assert names(tmp_path) == {"step-1"}
    assert in_child(on_such_a_disk) == 0
    assert generation_of(path) == 2
    assert names(tmp_path) == {"step-1"}


@pytest.mark.parametrize("before", [None, b"old"])
def test_a_killed_writer_of_a_file_leaves_the_old_one(before, tmp_path):
    path = tmp_path / "log.jsonl"
    if before is not None:
        write_bytes(path, before)
    assert in_child(lambda: write_bytes(path, b"new" * 10**6), "write_bytes:before-rename") == KILLED
    assert (path.read_bytes() if path.exists() else None) == before
    assert len(names(tmp_path)) == 1 + (before is not None)
    remove_leftovers(tmp_path)
    assert names(tmp_path) == (set() if before is None else {"log.jsonl"})


@pytest.mark.parametrize("length", [100, 200, 230, 240, 250, 255])
@pytest.mark.parametrize("letter", ["a", "é", "名"])
def test_the_longest_names_are_written_and_cleared_away(length, letter, tmp_path):
    name = (letter * length).encode()[:length].decode(errors="ignore")
    file, folder = tmp_path / name, tmp_path / "below" / name
    for content in (b"old", b"new"):
        write_bytes(file, content)
        assert file.read_bytes() == content
    for generation in (1, 2):
        write_generation(folder, generation)
        assert generation_of(folder) == generation
    assert in_child(lambda: write_bytes(file, b"newer"), "write_bytes:before-rename") == KILLED
    assert in_child(lambda: write_generation(folder, 3), "new_folder:before-rename") == KILLED
    assert file.read_bytes() == b"new"
    assert generation_of(folder) == 2
    for where in (tmp_path, tmp_path / "below"):
        assert len(names(where)) == 2 + (where == tmp_path)
        remove_leftovers(where)
    assert names(tmp_path) == {name, "below"}
    assert names(tmp_path / "below") == {name}


def test_forty_random_kills_tear_nothing(tmp_path):
    path, file = tmp_path / "step-1", tmp_path / "state.json"
    rng = random.Random(0)
    write_generation(path, 0)
    write_json(file, [0] * 2000)
    newest, last = 0, 0
    heard, tell = os.pipe()
    began = time.perf_counter()
    write_generation(path, 0)
    one_write = time.perf_counter() - began

    def write_for_ever() -> None:
        generation = newest
        while True:
            os.write(tell, b".")
            generation += 1
            write_generation(path, generation)
            write_json(file, [generation] * 2000)

    for _ in range(40):
        writer = start_child(write_for_ever)
        for _ in range(rng.randint(1, 3)):  # by generations and not by seconds: the machine may be busy
            os.read(heard, 1)
        time.sleep(rng.uniform(0, 2 * one_write))
        os.kill(writer, signal.SIGKILL)
        assert ended(writer) == KILLED
        generation = generation_of(path)
        assert generation >= newest, "an older folder came back"
        numbers = read_json(file)
        assert len(numbers) == 2000
        assert len(set(numbers)) == 1
        assert last <= numbers[0] <= generation
        newest, last = generation, numbers[0]
        remove_leftovers(tmp_path)
        assert names(tmp_path) == {"step-1", "state.json"}
    os.close(heard)
    os.close(tell)
    assert newest > 20, "the kills came before any work was done; the test has shown nothing"


def test_two_writers_of_one_name_leave_one_of_the_two(tmp_path):
    path = tmp_path / "shard.bin"
    contents = {bytes([i]) * 300_000 for i in (1, 2)}

    def write(content: bytes) -> None:
        for _ in range(20):
            write_bytes(path, content)

    writers = [start_child(lambda content=content: write(content)) for content in contents]
    seen = 0
    for writer in writers:
        while os.waitpid(writer, os.WNOHANG) == (0, 0):
            if path.exists():
                assert path.read_bytes() in contents
                seen += 1
    assert seen
    assert path.read_bytes() in contents
    assert names(tmp_path) == {"shard.bin"}


def on_a_small_disk(work: Callable[[], object]) -> Callable[[], object]:
    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))
        work()

    return limited


def test_a_full_disk_is_one_line_and_leaves_the_old_content(tmp_path):
    path, file = tmp_path / "step-1", tmp_path / "weights.safetensors"
    write_generation(path, 1)
    write_bytes(file, b"old")
    tensors = {"w": torch.zeros(5000)}
    for work in (
        lambda: write_generation(path, 2),
        lambda: write_bytes(file, b"x" * 20_000),
        lambda: save_tensors(file, tensors),
        lambda: write_json(tmp_path / "new.json", "x" * 20_000),
    ):
        assert in_child(on_a_small_disk(work)) == MachineError.exit_code
        assert generation_of(path) == 1
        assert file.read_bytes() == b"old"
        assert names(tmp_path) == {"step-1", "weights.safetensors"}


def test_the_line_about_a_full_disk_names_the_file_and_the_mend(tmp_path):
    path, told = tmp_path / "new.json", tmp_path / "told"

    def tell() -> None:
        try:
            write_bytes(path, b"x" * 20_000)
        except MachineError as error:
            told.write_text(str(error))

    in_child(on_a_small_disk(tell))
    assert told.read_text().startswith(f"{path}: File too large. Raise the limit on file sizes")


@pytest.mark.parametrize("under", ["file/x.json", "file/deep/x.json"])
def test_a_path_that_cannot_be_is_one_line(under, tmp_path):
    (tmp_path / "file").write_text("a file, not a folder")
    path = tmp_path / under
    with pytest.raises(MachineError) as fault:
        write_json(path, 1)
    one_line(fault, path)
    with pytest.raises(SmaltiError) as failed, new_folder(path):
        pass
    one_line(failed, path)
    with pytest.raises(InputError, match="no such file"):
        read_json(path)


def test_json_with_a_key_twice_is_refused(tmp_path):
    path = tmp_path / "config.json"
    path.write_text('{"a": {"width": 8, "width": 16}}')
    with pytest.raises(IntegrityError, match="a key is there twice") as fault:
        read_json(path)
    one_line(fault, path)


def test_an_error_inside_the_block_leaves_nothing_new(tmp_path):
    path = tmp_path / "step-1"

    def fail() -> None:
        with new_folder(path, replace=True) as part:
            write_bytes(part / "a", b"a")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert names(tmp_path) == set()
    write_generation(path, 1)
    with pytest.raises(ZeroDivisionError):
        fail()
    assert generation_of(path) == 1
    assert names(tmp_path) == {"step-1"}


def test_what_is_there_is_not_replaced_unasked(tmp_path):
    path = tmp_path / "step-1"
    write_generation(path, 1)
    with pytest.raises(ConfigError, match="already exists; choose another name"), new_folder(path):
        pass
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(ConfigError, match="is a file; choose another name"), new_folder(file, replace=True):
        pass
    assert generation_of(path) == 1
    assert file.read_text() == "mine"


def test_a_link_stays_a_link_and_a_dot_is_the_folder_itself(tmp_path, monkeypatch):
    write_generation(tmp_path / "real", 1)
    (tmp_path / "latest").symlink_to("real")
    write_generation(tmp_path / "latest", 2)
    assert (tmp_path / "latest").is_symlink()
    assert generation_of(tmp_path / "real") == 2
    monkeypatch.chdir(tmp_path / "real")
    write_generation(Path(), 3)
    assert generation_of(tmp_path / "real") == 3
    assert names(tmp_path) == {"real", "latest"}


def test_leftovers_go_only_when_their_writer_of_this_machine_is_dead(tmp_path):
    dead = start_child(lambda: None)
    ended(dead)
    here = files._host()
    kept = {
        f".a.{here}-{os.getpid()}.part",
        f".b.elsewhere-{dead}.part",
        f".c.{here}-{os.getpid()}.old",
        ".mine.part",
        ".d.part",
        "e.123.part",
        f".f.{here}-{dead}.txt",
    }
    gone = {f".x.{here}-{dead}.part", f".y.z.{here}-{dead}.part", f".w.{dead}.part"}
    for name in kept | gone:
        (tmp_path / name).write_text("x")
    (tmp_path / f".folder.{here}-{dead}.part" / "deep").mkdir(parents=True)
    remove_leftovers(tmp_path)
    assert names(tmp_path) == kept


def test_a_lock_has_one_holder_and_ends_with_it(tmp_path):
    path = tmp_path / "run" / ".lock"
    held = tmp_path / "held"

    def hold() -> None:
        with lock(path):
            held.touch()
            time.sleep(60)

    holder = start_child(hold)
    while not held.exists():
        time.sleep(0.001)
    with pytest.raises(ConfigError) as fault, lock(path):
        pass
    one_line(fault, path.parent)
    os.kill(holder, signal.SIGKILL)
    ended(holder)
    with lock(path):
        assert in_child(lambda: lock(path).__enter__()) == ConfigError.exit_code
    with lock(path):
        pass


def test_a_message_stays_on_one_line_whatever_a_file_calls_its_parts():
    for kind in (SmaltiError, InputError, IntegrityError, MachineError):
        said = str(kind("a.pth: no array 'mu' (there are: a\nb\x1b[2J\u2028c)"))
        assert said == r"a.pth: no array 'mu' (there are: a\x0ab\x1b[2J\u{2028}c)"
    assert str(SmaltiError()) == ""


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_waits_for_the_end_of_what_it_would_confuse():
    done = []

    def interrupted():
        with hold_interrupt():
            signal.raise_signal(signal.SIGINT)
            done.append("the rest")
            raise ValueError("as if the file were damaged")

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert done
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with hold_interrupt():
        done.append("nothing is raised where nobody interrupts")
    with ThreadPoolExecutor() as pool:  # only the main thread may set handlers
        assert pool.submit(lambda: hold_interrupt().__enter__()).result() is None


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # a file between `open` and `with`
@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_while_weights_are_loaded_is_no_fault_of_the_file():
    """Of 400 such interrupts one was told as a damaged file, with exit code 4."""
    rng = random.Random(0)
    path = Path(files.__file__).parent / "weights" / "tiny-image" / "model.safetensors"
    begin = time.perf_counter()
    load_tensors(path)
    took, ended = time.perf_counter() - begin, 0
    for _ in range(400):
        timer = threading.Timer(rng.uniform(0, took), os.kill, (os.getpid(), signal.SIGINT))
        try:
            timer.start()
            while timer.is_alive():
                load_tensors(path)
            time.sleep(0.01)  # the interrupt comes here at the latest
        except KeyboardInterrupt:
            ended += 1
    assert ended == 400
