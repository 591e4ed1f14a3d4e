"""Documents of every kind, and a sentence for each that cannot be read."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from tunesmith.data.raft.documents import read_documents
from tunesmith.errors import DataError


def read(*paths: Path, **columns: str):  # type: ignore[no-untyped-def]
    return read_documents([str(path) for path in paths], columns)


def pdf(path: Path, pages: list[str], password: str = "") -> None:
    """Write a PDF by hand: one line of text a page."""
    import io

    import pypdf

    objects = ["<< /Type /Catalog /Pages 2 0 R >>", ""]
    kids = []
    for text in pages:
        stream = f"BT /F1 12 Tf 20 100 Td ({text}) Tj ET" if text else ""
        objects.append(f"<< /Length {len(stream)} >>\nstream\n{stream}\nendstream")
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 400 200] /Contents {len(objects)} 0 R "
            "/Resources << /Font << /F1 << /Type /Font /Subtype /Type1 "
            "/BaseFont /Helvetica >> >> >> >>"
        )
        kids.append(f"{len(objects)} 0 R")
    objects[1] = f"<< /Type /Pages /Kids [{' '.join(kids)}] /Count {len(kids)} >>"
    out, places = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        places.append(len(out))
        out += f"{number} 0 obj\n{body}\nendobj\n".encode()
    start = len(out)
    out += f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n".encode()
    out += b"".join(b"%010d 00000 n \n" % place for place in places)
    out += f"trailer << /Size {len(objects) + 1} /Root 1 0 R >>\nstartxref\n{start}\n%%EOF".encode()
    if password:
        writer = pypdf.PdfWriter(clone_from=io.BytesIO(out))
        writer.encrypt(password, algorithm="RC4-128")
        writer.write(path)
    else:
        path.write_bytes(out)


def test_every_kind_of_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n<|endoftext|>\ntwo\n")
    (tmp_path / "b.md").write_text("# Head\n\nBody.\n")
    (tmp_path / "c.html").write_text(
        "<title>Page</title><script>var x = 1;</script><style>p {}</style>"
        "<p>First <b>bold</b>.</p><p>Second.</p><nav>Menu</nav>"
    )
    (tmp_path / "d.txt.gz").write_bytes(gzip.compress(b"packed"))
    (tmp_path / "e.jsonl").write_text(json.dumps({"title": "T", "content": "row"}) + "\n")
    (tmp_path / "f.csv").write_text("body,x\ncell,1\n")
    pdf(tmp_path / "g.pdf", ["Hello pdf", ""])
    (tmp_path / "h.png").write_bytes(b"x")
    (tmp_path / ".hidden.txt").write_text("x")
    sub = tmp_path / "sub"
    sub.mkdir()
    (sub / "i.txt").write_text("deep")
    (sub / "empty.txt").write_text(" ")
    library = read(tmp_path)
    found = {document.id: (document.title, document.text) for document in library.documents}
    assert found == {
        "a.txt:1": ("a", "one"),
        "a.txt:2": ("a", "two"),
        "b.md": ("Head", "# Head\n\nBody."),
        "c.html": ("Page", "First bold.\n\nSecond."),
        "d.txt.gz": ("d", "packed"),
        "e.jsonl:1": ("T", "row"),
        "f.csv:1": ("f", "cell"),
        "g.pdf": ("g", "Hello pdf"),
        "sub/i.txt": ("i", "deep"),
    }
    assert library.skipped == [
        ".hidden.txt: hidden",
        "h.png: .png is not read",
        "sub/empty.txt: no text",
    ]
    assert library.notes == ["g.pdf: 1 of 2 pages have no text (2)"]


def test_rows_of_a_table(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"inhalt": "eins"}\n{"inhalt": ""}\n{"inhalt": 3}\n')
    with pytest.raises(DataError, match="no field holds a document; the fields are inhalt"):
        read(path)
    library = read(path, text="inhalt")
    assert [document.text for document in library.documents] == ["eins"]
    assert len(library.skipped) == 2
    assert "rows.jsonl:3: the field 'text' is int" in library.skipped[1]


def test_copies_are_dropped_and_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("the same  text")
    (tmp_path / "b.txt").write_text("the same text")
    library = read(tmp_path)
    assert [document.id for document in library.documents] == ["a.txt"]
    assert library.skipped == ["b.txt: the same text as a.txt"]


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_text(name)
    with pytest.raises(DataError, match="Two documents have the name"):
        read(tmp_path / "x" / "a.txt", tmp_path / "y" / "a.txt")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.pdf", b"no pdf at all", "no readable PDF"),
        ("a.docx", b"x", "no known format"),
        ("a.txt", b"\xff", "not UTF-8"),
        ("a.txt", b" \n", "no document was found"),
        ("a.txt.gz", b"x", "cannot be read"),
        ("a.json", b'{"data": [{"paragraphs": [{"qas": []}]}]}', "begins like squad data"),
        ("a.json", b'{"1": {"QUESTION": "q", "CONTEXTS": 3}}', "begins like pubmed data"),
        ("a.json", b"{", "not valid JSON"),
    ],
)
def test_bad_files_give_a_sentence(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read(path)


def test_a_missing_file_and_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "notes.png").write_bytes(b"")
    with pytest.raises(DataError, match="no file"):
        read(tmp_path / "note.txt")
    with pytest.raises(DataError, match=r"no document was found \(notes.png: .png is not read\)"):
        read(tmp_path)


def test_an_encrypted_pdf_says_so(tmp_path: Path) -> None:
    pdf(tmp_path / "a.pdf", ["Secret"], password="x")
    with pytest.raises(DataError, match="is encrypted"):
        read(tmp_path / "a.pdf")


@pytest.mark.parametrize(
    ("name", "documents", "groups", "pairs"),
    [
        ("xquad.en.json", 120, 24, 623),
        ("pubmedqa_ori_pqal.json", 500, 500, 500),
        ("fairytaleqa", 731, 46, 1832),
        ("apibench_torchhub_train.json", 87, 87, 200),
    ],
)
def test_public_data_sets(shared: Path, name: str, documents: int, groups: int, pairs: int) -> None:
    library = read(shared / "data" / "docqa" / name)
    assert len(library.documents) == documents
    assert len({document.side for document in library.documents}) == groups
    assert len(library.pairs) == pairs
    assert not library.skipped
    texts = {document.id: document.text for document in library.documents}
    for pair in library.pairs:
        assert pair.question
        assert pair.answer
        if pair.start is not None:
            assert texts[pair.document][pair.start :].startswith(pair.answer)
        elif pair.span:
            assert pair.answer in texts[pair.document]
