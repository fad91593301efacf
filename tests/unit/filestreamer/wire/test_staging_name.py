"""The name of staging in all its forms: those of file systems that fold, ignore and drop."""

import unicodedata

import pytest

from filestreamer.wire.staging_name import leads_to_staging

FORMS = [
    ".filestreamer",
    ".FILESTREAMER",
    ".fileStreamer",
    ".filestreamer.",
    ".filestreamer . .",
    ".filestreamer::$INDEX_ALLOCATION",
    ".file\u200cstreamer",
    "\ufeff.filestreamer",
    ".filestreamer\u200d",
    ".file\u00adstreamer",
    ".file\u017ftreamer",
    ".\ufb01lestreamer",
    ".FILE\ufb06REAMER",
    "." + "".join(chr(0xFEE0 + ord(letter)) for letter in "filestreamer"),
    ".\U000e0041filestreamer",
]
OTHERS = [
    "filestreamer",
    ".filestreamer2",
    ".filestreamer-0123456789abcdef",
    "x.filestreamer",
    ".filestreamér",
    ".filestreamer é",
    "..filestreamer",
    "文档",
    "",
    ".",
]


@pytest.mark.parametrize("form", FORMS, ids=ascii)
def test_forms_of_the_name(form: str) -> None:
    for path in (form, f"a/{form}", f"{form}/b", f"a/{form}/b", unicodedata.normalize("NFD", form), f"é/{form}"):
        assert leads_to_staging(path.encode()), ascii(path)


@pytest.mark.parametrize("other", OTHERS, ids=ascii)
def test_other_names(other: str) -> None:
    for path in (other, f"a/{other}", f"{other}/b", f"é/{other}"):
        assert not leads_to_staging(path.encode()), ascii(path)


@pytest.mark.parametrize("path", [b"\xff.filestreamer", b".filestreamer\xff", b"\xff", b"\xed\xa0\x80"])
def test_names_that_are_no_text(path: bytes) -> None:
    assert not leads_to_staging(path)
    assert leads_to_staging(path + b"/.filestreamer")
