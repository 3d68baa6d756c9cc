"""URLs as text: what of them may be seen, and the URLs of what lies below them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replay_service.corpus.shards.urls import child_url, folder_url, printable

KEY, SECRET = "AKIAIOSFODNN7", "wJalrXUtnFEMI/K7MDENG+bPxRfi"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("/data/a?b=c@d", "/data/a?b=c@d"),
        ("s3://bucket/a/b.jsonl", "s3://bucket/a/b.jsonl"),
        (f"s3://{KEY}:{SECRET}@bucket/a?scheme=http", "s3://bucket/a"),
        (f"s3://{KEY}:p@ss@bucket/a", "s3://bucket/a"),
        ("gs://anonymous@bucket/a", "gs://bucket/a"),
        ("https://user:word@host:80/a.jsonl?token=t", "https://host:80/a.jsonl"),
        ("hf://datasets/org/name@main/a.parquet", "hf://datasets/org/name@main/a.parquet"),
        ("simplecache::s3://k:s@bucket/a", "simplecache::s3://bucket/a"),
        ("s3://bucket/web-0?.jsonl", "s3://bucket/web-0?.jsonl"),
    ],
)
def test_the_printable_form_has_neither_user_nor_password_nor_query(url: str, shown: str) -> None:
    assert printable(url) == shown


secrets = st.text(st.sampled_from("abcXYZ019/+%:=~-_.!"), min_size=6).filter(lambda text: text.strip("/:"))


@given(secrets, secrets)
def test_no_secret_is_in_the_printable_form(user: str, password: str) -> None:
    for url in (f"s3://{user.replace('/', '_')}:{password}@b/d", f"s3://b/d?access_key={user}&secret_key={password}"):
        assert password not in printable(url)
        assert printable(url) in ("s3://b/d", "s3://d")


@pytest.mark.parametrize("query", ["", "?region=us-east-1&scheme=http"])
def test_a_url_below_another_keeps_its_query(query: str) -> None:
    assert child_url(f"s3://k:s@bucket/a/{query}", "b/c.txt") == f"s3://k:s@bucket/a/b/c.txt{query}"
    assert folder_url(f"s3://k:s@bucket/a/b/*.txt{query}", "b/*.txt") == f"s3://k:s@bucket/a/{query}"
