"""The grammar of .cfg files, rule by rule; and that nothing in them can be anything but text."""

from __future__ import annotations

import os

import pytest

from convnet.definitions import ini
from convnet.definitions.files import read_ini
from convnet.definitions.ini import DefinitionError, parse


def value(text: str, key: str = "k", section: str = "a") -> str:
    found = parse(text, "f.cfg").sections[section].get(key)
    assert found is not None
    return found.text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[a]\nk=v", "v"),
        ("[a]\nk: v", "v"),
        ("[a]\nk \t = \t v \t", "v"),
        ("[a]\r\nk=v\r\n", "v"),
        ("[a] what stands here means nothing\nk=v", "v"),
        ("[a]\nk=a=b:c", "a=b:c"),
        ("[a]\nk=", ""),
        ('[a]\nk=""', ""),
        ("[a]\nK=v", "v"),  # keys in any case
        ("[a]\nk=1\nK=2", "2"),
        ("[a]\nk=1\n[b]\nk=5\n[a]\nj=3\nk=2", "2"),  # a section that occurs twice
        ("[a]\nk=v ; comment", "v"),
        ("[a]\nk=v\t;comment", "v"),
        ("[a]\nk= ;comment", ""),
        ("[a]\nk=dexp[base=.01;tgtFactor=250;numSteps=4]", "dexp[base=.01;tgtFactor=250;numSteps=4]"),
        ("[a]\nk=x;y ;z", "x;y"),
        ("[a]\nk=v # no comment", "v # no comment"),
        ("[a]\nk=1,\n  2\n\t3", "1,\n2\n3"),  # goes on
        ("[a]\nk=1\n\n 2", "1\n2"),
        ("[a]\nk=1\n# a comment\n 2", "1\n2"),
        ("[a]\nk=1\n # goes on, too", "1\n# goes on, too"),
        ("[a]\nj=2\nk=%(j)s,%(J)s", "2,2"),
        ("[a]\nj=2\ni=%(j)s%%\nk=%(i)s0", "2%0"),
        ("[DEFAULT]\nk=7\n[a]\nj=1", "7"),
        ("[DEFAULT]\nk=7\n[a]\nk=1", "1"),
        ("[a]\nj=1\n[DEFAULT]\nk=<%(j)s>", "<1>"),
        ("# k=0\n; k=0\nrem k=0\nREM k=0\n[a]\nk=v\n#k=2\n;k=3\nRem k=4", "v"),
        ("[a]\nremark=2\nk=v", "v"),
        ("\ufeff[a]\nk=v".removeprefix("\ufeff"), "v"),
        ("[a]\nk=\u00e9\u00a0", "\u00e9\u00a0"),  # white space is ASCII's
    ],
)
def test_values(text, expected):
    assert value(text) == expected


def test_sections_keep_case_order_and_lines():
    found = parse("\n[b]\nx=1\n[A]\n\n[a]\n[b]\nY=2\n z\n", "f.cfg")
    assert list(found.sections) == ["b", "A", "a"]
    assert [section.line for section in found.sections.values()] == [2, 4, 6]
    b = found.sections["b"]
    assert {key: (v.text, v.line, v.file) for key, v in b.values.items()} == {
        "x": ("1", 3, "f.cfg"), "y": ("2\nz", 8, "f.cfg"),
    }  # fmt: skip
    assert found.sections["a"].get("x") is None


def test_comments_are_kept():
    assert parse("# one\n[a]\n;; two \nk=v\n\nrem three", "f").comments == ((1, "one"), (3, "two"), (6, "rem three"))


@pytest.mark.parametrize(
    ("text", "line", "found"),
    [
        ("k=v", 1, "'k=v' stands in front of the first"),
        ("ano[conv1]\nk=v", 1, "'ano[conv1]' stands in front of the first"),
        ("\n  [a]", 2, "'[a]' stands in front of the first"),
        ("[a]\nk", 2, "'k' is no key=value"),
        ("[a]\n[]", 2, "'[]' is no key=value"),
        ("[a]\n=v", 2, "'=v' is no key=value"),
        ("[a]\n k=v", 2, "'k=v' begins with white space and has no value to go on with"),
        ("[a]\nk=v\n[b]\n k=v", 4, "begins with white space"),
        ("[a]\nk" + "y" * 200, 2, "yyy...' is no key=value"),
        ("[a]\nk\x00\x1b[31m", 2, r"'k\x00\x1b[31m' is no key=value"),
    ],
)
def test_lines_that_are_nothing(text, line, found):
    with pytest.raises(DefinitionError) as raised:
        parse(text, "f.cfg")
    assert str(raised.value).startswith(f"f.cfg, line {line}: ")
    assert found in str(raised.value)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("[a]\nk=%(j)s", r"'%\(j\)s' names no key of section 'a'"),
        ("[a]\nk=%(k)s", "more than 50 references"),
        ("[a]\nk=%(j)s\nj=%(k)s", "more than 50 references"),
        ("[a]\nk=50%", "'%' is no reference"),
        ("[a]\nk=%(j)d", r"'%\(j\)d' is no reference"),
        ("[a]\nk=%(j", r"'%\(j' is no reference"),
        ("[a]\nj=%%" + "y" * 5000 + "\nk=%(j)s", "more than 4096 characters"),
        ("[a]\n" + "".join(f"k{n}={f'%(k{n + 1})s' * 10}\n" for n in range(9)) + "k9=ha\nk=%(k0)s", "more than 50"),
    ],
)
def test_references_that_lead_nowhere(text, found):
    with pytest.raises(DefinitionError, match=f"^f.cfg, line [0-9]+: .*{found}"):
        value(text)


def test_values_that_nobody_asks_for_may_be_anything():
    assert value("[a]\nk=v\nj=100%\ni=%(nothing)s") == "v"


def test_files(tmp_path):
    path = tmp_path / "net.cfg"
    path.write_bytes(b"\xef\xbb\xbf[a]\nk=\xe2\x82\xac")
    assert read_ini(path).sections["a"].get("k").text == "\u20ac"
    path.write_bytes(b"[a]\nk=\xe9")  # no UTF-8
    assert read_ini(path).sections["a"].get("k").text == "\u00e9"
    path.write_bytes(b"")
    assert not read_ini(path).sections


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(DefinitionError, match=r"cannot read '.*/none.cfg': No such file"):
        read_ini(tmp_path / "none.cfg")
    with pytest.raises(DefinitionError, match=r"cannot read .*: Is a directory"):
        read_ini(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DefinitionError, match=r"cannot read .*: not a regular file"):
        read_ini(tmp_path / "pipe")


def test_limits(tmp_path):
    path = tmp_path / "net.cfg"
    path.write_bytes(b"[a]\n" + b"#" * (ini.MOST_BYTES - 4))
    read_ini(path)
    path.write_bytes(b"[a]\n" + b"#" * (ini.MOST_BYTES - 3))
    with pytest.raises(DefinitionError, match=r"net.cfg: has more than 1,048,576 bytes"):
        read_ini(path)
    parse("".join(f"[{n}]\n" for n in range(1000)), "f")
    with pytest.raises(DefinitionError, match="f, line 1001: more than 1,000 sections"):
        parse("".join(f"[{n}]\n" for n in range(1001)), "f")


@pytest.mark.parametrize(
    ("raw", "found"),
    [
        (b"[a]\nk=" + b"\n x" * 300_000, None),  # a value of as many lines
        (b"[a]\n" + b"k=v\n" * 250_000, None),
        (b"[a]\nk=" + b";" * 1_000_000, None),
        (b"[a]\nk=" + b" " * 1_000_000 + b"x", None),
        (b"[" * 1_000_000, r"stands in front of the first \[section\]"),
        (b"[a]\n" + b"k" * 1_000_000, "is no key=value"),
    ],
    ids=["lines", "keys", "semicolons", "spaces", "brackets", "letters"],
)
def test_large_files_are_read_or_refused_at_once(tmp_path, raw, found):
    """Within the time that a test may take: work that grew with the square of the size would not come to an end."""
    path = tmp_path / "net.cfg"
    path.write_bytes(raw)
    if found is None:
        assert read_ini(path).sections["a"].get("k") is not None
        return
    with pytest.raises(DefinitionError, match=f"{found}$") as raised:
        read_ini(path)
    assert len(str(raised.value)) < 300
