"""Every way a list can be wrong: each row named and all counted, in one line."""

import json
from pathlib import Path

import pytest

from smalti.data import ImagesConfig
from smalti.data.list_formats import read_list
from smalti.errors import InputError

A = {"filename": "a.jpg", "prefix": "", "label": 0}
UCF = "ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("a.jpg", "b.jpg", "c,d.jpg", UCF, "YoYo/v_YoYo_g01_c01.avi", "YoYo/v_YoYo_g01_c02.avi"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def fault(path: Path, text: str | bytes, **options: object) -> str:
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    with pytest.raises(InputError) as caught:
        read_list(path, **options)
    message = str(caught.value)
    assert message.isprintable()
    assert message.startswith(f"{path}: ")
    return message.removeprefix(f"{path}: ").replace(f"{path.parent}/", "")


PLAIN = {
    "blank": ("a.jpg\n\nb.jpg\n  \n", "2 bad rows: row 2 is blank; row 4 is blank"),
    "blank first": ("\na.jpg,x\nb.jpg,y", "1 bad rows: row 1 is blank"),
    "doubled": ("a.jpg\nb.jpg\na.jpg\na.jpg", "2 bad rows: row 3 repeats row 1 (a.jpg); row 4 repeats row 1 (a.jpg)"),
    "missing": ("a.jpg\ngone.jpg", "1 bad rows: row 2: no such file gone.jpg"),
    "no class": ("a.jpg,x\nb.jpg", "1 bad rows: row 2 has no class, unlike row 1"),
    "empty classes": ("a.jpg,\nb.jpg, ", "2 bad rows: row 1 has an empty class; row 2 has an empty class"),
    "a class": ("a.jpg\nb.jpg,x", "1 bad rows: row 2 has a class, unlike row 1"),
    "commas": ("a.jpg\nc,d.jpg,x", "1 bad rows: row 2 has 3 fields, not path and class; put a name with commas in"),
    "quotes": ('a.jpg\n"b.jpg', "1 bad rows: row 2 is no line of CSV; correct its quotes"),
    "text after quotes": ('"a.jpg"x', "1 bad rows: row 1 is no line of CSV; correct its quotes"),
    "empty": ("", "the list names no files"),
    "header alone": ("path,label\n", "the list names no files"),
    "a header below": ("a.jpg\npath", "1 bad rows: row 2: no such file path"),
    "NUL": (b"a.jpg\nb\0.jpg", "row 2"),
    "line breaks of the terminal": (b"\x1b[2Jx\x07.jpg", r"row 1: no such file \x1b[2Jx\x07.jpg"),
    "no UTF-8": (b"\xff.jpg", r"1 bad rows: row 1: no such file \xff.jpg"),
    "a huge name": ("x" * 5000, "1 bad rows: row 1: no such file xxx"),
    "a huge field": ("x" * 200_000, "1 bad rows: row 1 is no line of CSV"),
    "negative": ("a.jpg,-1\nb.jpg,2", "class -1 is no class number (0 to 1,000,000); correct it"),
    "too large": ("a.jpg,1000001", "class 1000001 is no class number"),
    "many": (
        "\n" * 9,
        "9 bad rows: row 1 is blank; row 2 is blank; row 3 is blank; row 4 is blank; row 5 is blank; and 4",
    ),
}


@pytest.mark.parametrize("name", PLAIN)
def test_faults_of_plain_lists(name: str, root: Path) -> None:
    text, expected = PLAIN[name]
    assert expected in fault(root / "list.txt", text)


JSON = {
    "no JSON": ("[{", "not valid JSON: Expecting property name enclosed in double quotes: line 1 column 3 (char 2)"),
    "deep": ("[" * 200_000, "not valid JSON:"),
    "a key twice": (
        '[{"filename": "a.jpg", "prefix": "", "label": 0, "label": 1}]',
        "not valid JSON: a key is there twice",
    ),
    "huge number": (json.dumps([A]).replace("0", "9" * 1000), "class 99999999999999999999 is no class number"),
    "an object": ('{"a.jpg": 0}', "holds no list of {filename, prefix, label} (format imagenet-json)"),
    "a string": ('"a.jpg"', "holds no list of"),
    "empty": ("[]", "the list names no files"),
    "wrong entries": (
        json.dumps([A, 3, None, [], "a.jpg"]),
        "4 bad entries: entry 2 is no {filename, prefix, label}; entry 3 is no",
    ),
    "no filename": (
        json.dumps([{**A, "filename": 1}, {**A, "filename": ""}]),
        "2 bad entries: entry 1 has no filename",
    ),
    "no prefix": (json.dumps([{"filename": "a.jpg", "label": 0}]), '1 bad entries: entry 1 has no prefix ("" if the'),
    "labels": (
        json.dumps([{**A, "label": label} for label in (-1, True, "3", 1.0, None, [0] * 999)]),
        "6 bad entries: entry 1 has no whole number as label (found -1); entry 2 has no whole number as label (found T",
    ),
    "too large": (json.dumps([{**A, "label": 10**7}]), "class 10000000 is no class number"),
    "doubled": (json.dumps([A, A]), "1 bad entries: entry 2 repeats entry 1 (a.jpg)"),
    "missing": (json.dumps([{**A, "prefix": "../x"}]), "1 bad entries: entry 1: no such file ../x/a.jpg"),
    "NUL": (json.dumps([{**A, "filename": "a\0.jpg"}]), r"entry 1: no such file a\x00.jpg"),
    "half a character": ('[{"filename": "\\ud800.jpg", "prefix": "", "label": 0}]', r"no such file \u{d800}.jpg"),
    "a line break": (json.dumps([{**A, "filename": "a\n\x1b[2J"}]), r"no such file a\x0a\x1b[2J"),
}


@pytest.mark.parametrize("name", JSON)
def test_faults_of_magicmasters_json(name: str, root: Path) -> None:
    text, expected = JSON[name]
    assert expected in fault(root / "ImageNet_val.json", text)


K600 = {
    "no comma": ("a.jpg,x\nb.jpg\n", "1 bad rows: row 2 is not name,class but b.jpg"),
    "no name": (",x\n", "1 bad rows: row 1 is not name,class but ,x"),
    "no class": ("a.jpg,\n", "1 bad rows: row 1 is not name,class but a.jpg,"),
    "blank": ("a.jpg,x\n\n \nb.jpg,x", "2 bad rows: row 2 is blank; row 3 is blank"),
    "missing": ("a.jpg,x\na,b,c", "1 bad rows: row 2: no such file a,b.mp4"),
    "doubled": ("a.jpg,x\na.jpg,y", "1 bad rows: row 2 repeats row 1 (a.jpg)"),
}


@pytest.mark.parametrize("name", K600)
def test_faults_of_k600s_lists(name: str, root: Path) -> None:
    text, expected = K600[name]
    assert fault(root / "train_new.txt", text, format="k600") == expected


CSV = {
    "no header": ("a.jpg\nb.jpg\n", "row 1 is no header row (format mindone-csv); add one, or set format: list"),
    "no header, and its file is gone": ("gone.jpg\nb.jpg\n", "row 1 is no header row"),
    "a blank header": ("\na.jpg", "row 1 is no header row"),
    "header alone": ("path,caption\n", "the list names no files"),
    "empty": ("", "the list names no files"),
    "blank": ("path\na.jpg\n\n,caption\n", "2 bad rows: row 3 is blank; row 4 is blank"),
    "quotes": ('path\n"a.jpg\n', "1 bad rows: row 2 is no line of CSV; correct its quotes"),
    "missing": ("path,n\nc,d.jpg\n", "1 bad rows: row 2: no such file c"),
    "doubled": ("path\na.jpg,1\na.jpg,2\n", "1 bad rows: row 3 repeats row 2 (a.jpg)"),
}


@pytest.mark.parametrize("name", CSV)
def test_faults_of_mindones_csv(name: str, root: Path) -> None:
    text, expected = CSV[name]
    assert expected in fault(root / "list.csv", text, format="mindone-csv")


YOYO = "YoYo/v_YoYo_g01_c01.avi"
UCF101 = {
    "no UCF-101": (
        f"{UCF} 1\na.jpg 1\n",
        "1 bad rows: row 2: not Class/v_Class_g01_c01.avi, as UCF-101 has it; correct",
    ),
    "blank": (f"{UCF} 1\n\n", "1 bad rows: row 2 is blank"),
    "missing": (f"{UCF} 1\nYoYo/v_YoYo_g09_c01.avi 2", "1 bad rows: row 2: no such file YoYo/v_YoYo_g09_c01.avi"),
    "doubled": (f"{UCF} 1\n{UCF} 1", f"1 bad rows: row 2 repeats row 1 ({UCF})"),
    "class 0": (f"{UCF} 0", "1 bad rows: row 1: classes count from 1"),
    "two classes of one number": (f"{UCF} 1\n{YOYO} 1", "1 bad rows: row 2: class 1 of YoYo contradicts a row above"),
    "two numbers of one class": (
        f"{YOYO} 1\n{YOYO[:-5]}2.avi 2",
        "1 bad rows: row 2: class 2 of YoYo contradicts a row above",
    ),
    "a row without": (f"{UCF} 1\n{YOYO}", "1 bad rows: row 2 has no class, unlike row 1"),
}
INDEX = {
    "wrong number": (f"{UCF} 1\n{YOYO} 1", "1 bad rows: row 2: class 1 in the row, 2 in classInd.txt"),
    "unknown class": (f"{UCF} 1\nX/v_YoYo_g01_c01.avi 1", "1 bad rows: row 2: class X is not in classInd.txt"),
}


@pytest.mark.parametrize("name", [*UCF101, *INDEX])
def test_faults_of_ucf101s_splits(name: str, root: Path) -> None:
    if name in INDEX:
        (root / "classInd.txt").write_text("1 ApplyEyeMakeup\n2 YoYo\n")
    text, expected = {**UCF101, **INDEX}[name]
    assert expected in fault(root / "trainlist01.txt", text)


@pytest.mark.parametrize("text", ["1 A\n3 B\n", "1 A\n2 A\n", "1 A\n\n", "A\n", "1 A B\n", "0 A\n"])
def test_a_wrong_class_index_is_named_by_row(text: str, root: Path) -> None:
    (root / "classInd.txt").write_text(text)
    (root / "trainlist01.txt").write_text(f"{UCF} 1\n")
    with pytest.raises(InputError, match=r"classInd.txt: row \d is not `\d Class`; take the official file"):
        read_list(root / "trainlist01.txt")


def test_more_rows_than_the_limit_are_refused(root: Path) -> None:
    assert "3 rows, at most 2 are read" in fault(root / "list.txt", "a.jpg\nb.jpg\nx", limit=2)


def test_the_faults_of_a_list_reach_the_source(root: Path) -> None:
    (root / "list.txt").write_text("a.jpg\ngone.jpg\n")
    with pytest.raises(InputError, match=r"1 bad rows: row 2: no such file .*gone\.jpg"):
        ImagesConfig(path=root / "list.txt").build()


def test_a_list_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot be read: Is a directory"):
        read_list(tmp_path)
