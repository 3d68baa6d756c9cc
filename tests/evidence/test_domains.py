from collections import Counter

from tests.evidence.domains import PRETRAINING, TARGETS


def test_targets_are_no_part_of_the_corpus() -> None:
    sources = [*PRETRAINING, *(each.source for each in TARGETS)]
    assert len(PRETRAINING) == 16
    assert len({each.name for each in sources}) == len(sources)
    assert len({(each.packages, each.pattern) for each in sources}) == len(sources)


def test_settings_are_tuned_on_other_targets_than_are_reported() -> None:
    assert Counter(each.role for each in TARGETS) == {"tuning": 3, "reported": 3}


def test_packages_but_those_of_debian_have_a_checksum() -> None:
    for source in [*PRETRAINING, *(each.source for each in TARGETS)]:
        assert all(each.kind == "deb" or (each.version and len(each.sha256) == 64) for each in source.packages)
