"""Every method file begins with a header that says what it is, and has a test of its own."""

import pytest

from gnomon.cli.methods import FAMILIES, ROOT, files, header

METHODS = [f for family in FAMILIES for f in files(family)]


@pytest.mark.parametrize("file", METHODS, ids=lambda f: f.relative_to(ROOT).as_posix())
def test_header(file):
    found = header(file.read_text(encoding="utf-8"))
    assert ": " in found["title"] and found["title"].endswith("."), "first line: 'Name: what it does.'"
    assert found.get("paper") or found.get("origin"), "needs Paper: or Origin:"
    for field in ("rule", "where", "differs"):
        assert found.get(field), f"needs {field.capitalize()}:"


@pytest.mark.parametrize("file", METHODS, ids=lambda f: f.relative_to(ROOT).as_posix())
def test_method_has_its_own_test(file):
    mirror = ROOT / "tests" / file.relative_to(ROOT).parent / f"test_{file.name}"
    assert mirror.is_file(), f"write {mirror.relative_to(ROOT)}"


def test_header_grammar():
    text = (
        '"""FastV: drop tokens.\n\nPaper:   A title.\n         arXiv:1\nRule:    top k\n'
        'Where:   prefill\nDiffers: no\n"""'
    )
    assert header(text) == {
        "title": "FastV: drop tokens.",
        "paper": "A title. arXiv:1",
        "rule": "top k",
        "where": "prefill",
        "differs": "no",
    }
