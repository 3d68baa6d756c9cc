"""Questions on held-out text."""

import pytest

from tests.evidence.questions import questions_of

DOCUMENTS = [f"{letter}{i:04}é" * 30 for i, letter in enumerate("abcdefgh")]


def test_the_right_choice_follows_its_prompt_and_the_others_are_of_other_documents() -> None:
    found = list(questions_of("letters", DOCUMENTS, 20, 60, 20, 4))
    assert found == list(questions_of("letters", DOCUMENTS, 20, 60, 20, 4))
    assert {each["answer"] for each in found} == {0, 1, 2, 3} and {each["task"] for each in found} == {"letters"}
    for each in found:
        own = next(document for document in DOCUMENTS if each["prompt"] in document)
        right = each["choices"].pop(each["answer"])
        assert each["prompt"] + right in own
        assert len(each["choices"]) == 3 and not any(other in own for other in each["choices"])
        assert all(19 <= len(other.encode()) <= 21 for other in [right, *each["choices"]])


def test_a_domain_of_short_documents_is_refused() -> None:
    with pytest.raises(ValueError, match="0 documents of short have more than 80 bytes; two are needed"):
        list(questions_of("short", ["too short"] * 9, 1, 60, 20, 4))
