"""Csv files as people write them: delimiters, quoting, headers, encodings, compression."""

import bz2
import gzip
import logging
import lzma
from pathlib import Path

import pytest

from textdistill.data import csv_dialect, streams
from textdistill.data.csv_dialect import CsvOptions
from textdistill.data.csv_files import read_csv
from textdistill.data.streams import DataFile, file_errors


def read(folder: Path, content: str | bytes, name: str = "train.csv", **options: object) -> list[dict[str, str]]:
    """The rows of a csv file."""
    file = folder / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with file_errors(DataFile(file)):
        names, scan = read_csv(DataFile(file), CsvOptions(**options))
        return [row for table in scan(names) for row in table.to_pylist()]


def columns(*rows: tuple[str, str]) -> list[dict[str, str]]:
    return [{"text": text, "label": label} for text, label in rows]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('text\tlabel\na\tx\n"b\ty\nc\tx\n"d\ty\n', [("a", "x"), ('"b', "y"), ("c", "x"), ('"d', "y")]),
        # A lone mark, and one whose partner ends a cell two rows below.
        ('text\tlabel\n"a\tx\nb\ty\n', [('"a', "x"), ("b", "y")]),
        ('text\tlabel\n"a\tx\nb\ty\nsay "c"\ty\nd"\tx\n', [('"a', "x"), ("b", "y"), ('say "c"', "y"), ('d"', "x")]),
        # Quoted after all.
        ('text\tlabel\n"a\nb"\tx\n"c\td"\ty\n', [("a\nb", "x"), ("c\td", "y")]),
        ('text\tlabel\n"a ""b"""\tx\nc\ty\n', [('a "b"', "x"), ("c", "y")]),
        ('text\tlabel\n5" disk\tx\nc "d"\ty\n', [('5" disk', "x"), ('c "d"', "y")]),
    ],
)
@pytest.mark.parametrize("block", [12, 2**24])
def test_a_tab_separated_file_quotes_only_if_every_quotation_closes(tmp_path, monkeypatch, content, expected, block):
    if "\n\t" not in content and block < 2**24:
        monkeypatch.setattr(streams, "BLOCK_BYTES", 40)
    assert read(tmp_path, content, "train.tsv") == columns(*expected)


@pytest.mark.parametrize(
    ("content", "row", "line"),
    [
        ('text,label\na,x\n"b,y\nc,x\n', 2, 3),
        ('text,label\n"a\nb",x\nc,y\nd,"x\n', 3, 5),
        ('text,label\n"a" b,x\nc,y\n', 1, 2),
        # The marks of two rows make one quotation.
        ('text,label\na,x\n"b,y\nc",x\nd,y\n', 2, 3),
        ('text,label\n\n"b,x\nc,x\nd,"y\n', 1, 3),
        ('a film,pos\n"b,neg\n', 2, 2),
    ],
)
@pytest.mark.parametrize("block", [15, 2**24])
def test_an_unclosed_quote_in_csv_is_refused_with_its_row(tmp_path, monkeypatch, content, row, line, block):
    monkeypatch.setattr(streams, "BLOCK_BYTES", block)
    header = False if content.startswith("a film") else None
    with pytest.raises(ValueError, match=rf"quotation mark .*row {row} \(line {line}\) does not: \"|row {row} .line"):
        read(tmp_path, content, header=header)


def test_quotation_marks_inside_of_cells_are_text(tmp_path):
    rows = [('5" disk', "x"), ('say "b"', "y"), ("", "x")]
    assert read(tmp_path, "text,label\n" + "".join(f"{a},{b}\n" for a, b in rows)) == columns(*rows)


def test_a_backslash_may_escape_quotation_marks(tmp_path):
    content = 'text,label\n"He said \\"a, b\\", then",x\n"c\\\\",y\nd,x\n'
    assert read(tmp_path, content) == columns(('He said "a, b", then', "x"), ("c\\", "y"), ("d", "x"))


@pytest.mark.parametrize("delimiter", [",", ";", "|", "\t"])
@pytest.mark.parametrize("text", ["plain", "with, comma", "with; semicolon", "with | pipe"])
def test_delimiters_are_found_out(tmp_path, caplog, delimiter, text):
    text = f'"{text}"' if delimiter in text else text
    rows = [(text, "x"), ("b", "y"), ("c", "x")]
    with caplog.at_level(logging.INFO):
        found = read(tmp_path, "".join(f"{a}{delimiter}{b}\n" for a, b in [("text", "label"), *rows]))
    assert found == columns((text.strip('"'), "x"), *rows[1:])
    assert ("the columns are separated by" in caplog.text) == (delimiter != ",")


@pytest.mark.parametrize("delimiter", ["semicolon", ";"])
def test_a_given_delimiter_is_used(tmp_path, delimiter):
    assert read(tmp_path, "text;label, too\na;x\n", delimiter=delimiter) == [{"text": "a", "label, too": "x"}]
    assert read(tmp_path, "text^label\na^x\n", delimiter="^") == columns(("a", "x"))


def test_commas_in_a_tab_separated_file_name_the_key(tmp_path):
    with pytest.raises(ValueError, match=r"data\.delimiter: .* tabs, but the first row is 'text,label'; give"):
        read(tmp_path, "text,label\na,x\n", "train.tsv")
    assert read(tmp_path, "text,label\na,x\n", "train.tsv", delimiter="comma") == columns(("a", "x"))


@pytest.mark.parametrize("delimiter", ["", ",,", "a", "é", '"', "\n"])
def test_impossible_delimiters_are_refused(delimiter):
    with pytest.raises(ValueError, match=r"data\.delimiter must be one character, or one of comma, tab"):
        CsvOptions(delimiter=delimiter).check()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("3,Wall St.\n1,The cup\n", "it holds the number 3"),
        ("a fine film,pos\nno,neg\nyes,pos\nwell,neg\n", "'pos' comes again in its column"),
        ("one two three four five six seven eight nine ten,pos\na,neg\n", "it holds the text"),
    ],
)
def test_a_first_row_of_data_is_found_out_and_said(tmp_path, caplog, content, reason):
    found = read(tmp_path, content)
    assert [*found[0]] == ["column_1", "column_2"]
    assert len(found) == content.count("\n")
    assert reason in caplog.text
    assert "data.header=true" in caplog.text
    assert len(read(tmp_path, content, header=True)) == content.count("\n") - 1


@pytest.mark.parametrize(
    "content", ["text,label\na,x\nb,x\n", "0,1\na,x\nb,y\n", "Review Text,Stars (1-5)\na,5\nb,5\n"]
)
def test_names_of_columns_are_a_header(tmp_path, caplog, content):
    assert len(read(tmp_path, content)) == 2
    assert len(read(tmp_path, content, header=False)) == 3
    assert not caplog.records


def test_names_are_trimmed_and_empty_ones_numbered(tmp_path):
    assert read(tmp_path, ", text , label,\n0,a,x,\n") == [{"column_1": "0", "text": "a", "label": "x", "column_4": ""}]


@pytest.mark.parametrize("content", ["text,text\na,x\n", "label, text ,text\na,b,c\n", '"text",label,text\na,b,c\n'])
def test_two_columns_of_one_name_are_refused(tmp_path, content):
    with pytest.raises(ValueError, match=r"must have different names, got 'text' 2 times; rename one"):
        read(tmp_path, content)
    assert read(tmp_path, content, header=False)


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_line_ends_and_empty_lines(tmp_path, newline):
    content = newline.join(["", "text,label", "a,x", "", '"b', 'c",y', ""])
    assert read(tmp_path, content) == columns(("a", "x"), (f"b{newline}c", "y"))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("read_at_once", [7, 2**20])
def test_a_byte_order_mark_states_the_encoding(tmp_path, monkeypatch, encoding, read_at_once):
    content = 'text,label\ncafé 😀,x\n"naïve, ""Ω""",y\n'.encode(encoding)
    monkeypatch.setattr(streams, "DECODED_BYTES", read_at_once)
    assert read(tmp_path, content) == columns(("café 😀", "x"), ('naïve, "Ω"', "y"))


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1", "utf-16-le", "utf-16-be", "cp1251", "shift_jis", "gb18030"])
def test_a_given_encoding_is_used(tmp_path, encoding):
    text = {"cp1251": "кино", "shift_jis": "映画", "gb18030": "电影"}.get(encoding, "café")
    content = f"text,label\n{text},x\nb,y\n".encode(encoding)
    assert read(tmp_path, content, encoding=encoding) == columns((text, "x"), ("b", "y"))


@pytest.mark.parametrize(("rows", "line"), [(0, 2), (1, 3), (200_000, 200_002)])
def test_a_byte_of_another_encoding_is_refused_with_its_line(tmp_path, rows, line):
    content = b"text,label\n" + b"a,x\n" * rows + "café,x\n".encode("cp1252")
    with pytest.raises(ValueError, match=rf"byte 0xe9 in line {line:,} is not; .*data\.encoding=cp1252") as error:
        read(tmp_path, content)
    assert "\n" not in str(error.value)


def test_other_encodings_are_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match=r"zero bytes.*data\.encoding=utf-16-le"):
        read(tmp_path, "text,label\na,x\n".encode("utf-16-le"))
    with pytest.raises(ValueError, match=r"must be cp1252, but byte 0x81 in line 2 is not.*data\.encoding=utf-8"):
        read(tmp_path, b"text,label\n\x81,x\n", encoding="cp1252")
    for name in ("nonsense", "base64"):
        with pytest.raises(ValueError, match=r"data\.encoding must be an encoding that Python knows"):
            CsvOptions(encoding=name).check()


@pytest.mark.parametrize(("suffix", "compress"), [("gz", gzip.compress), ("bz2", bz2.compress), ("xz", lzma.compress)])
@pytest.mark.parametrize("name", ["train.csv", "train.tsv"])
def test_compressed_files_are_read(tmp_path, suffix, compress, name):
    content = "text,label\né,x\nb,y\n".replace(",", "\t" if name.endswith("tsv") else ",")
    assert read(tmp_path, compress(content.encode()), f"{name}.{suffix}") == columns(("é", "x"), ("b", "y"))


@pytest.mark.parametrize(
    "row", ["a" * 3000 + ",x", '"' + "a" * 3000 + '",x', "x," + "a" * 3000, '"' + 'a""' * 1000 + '",x']
)
def test_a_row_larger_than_a_block_is_refused(tmp_path, monkeypatch, row):
    monkeypatch.setattr(streams, "BLOCK_BYTES", 1000)
    with pytest.raises(ValueError, match=r"a row must fit into 1,000 bytes|row 3 \(line 4\)"):
        read(tmp_path, f"text,label\na,x\nb,y\n{row}\nc,x\n")


def test_a_first_row_larger_than_the_sample_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(csv_dialect, "SAMPLE_BYTES", 100)
    with pytest.raises(ValueError, match="its first row must end within 100 bytes"):
        read(tmp_path, "a" * 200 + ",x\n")


def test_a_row_of_another_length_is_refused_with_its_number(tmp_path):
    with pytest.raises(ValueError, match=r"Row #3: Expected 2 columns, got 3: b,c,y"):
        read(tmp_path, "text,label\na,x\nb,c,y\n")


def test_blocks_may_end_anywhere(tmp_path, monkeypatch):
    rows = [(f'{i} "quoted", é\nline', "xy"[i % 2]) for i in range(40)]
    content = "text,label\n" + "".join('"' + a.replace('"', '""') + f'",{b}\n' for a, b in rows)
    for block in range(60, 90):
        monkeypatch.setattr(streams, "BLOCK_BYTES", block)
        assert read(tmp_path, content) == columns(*rows)
