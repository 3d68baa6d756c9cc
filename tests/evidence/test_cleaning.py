import gzip
import json

from tests.evidence import cleaning


def test_a_manual_page_keeps_its_sections_and_loses_comments_titles_and_credits() -> None:
    page = """.\\" a comment
'\\" t
.TH LS 1 "2022"
.ds macro text
.SH NOM
ls \\- lister
.\\" another
.SH TRADUCTION
Les traducteurs
.SH "VOIR AUSSI"
\\fBcp\\fP(1)"""
    expected = '.SH NOM\nls \\- lister\n.SH "VOIR AUSSI"\n\\fBcp\\fP(1)'
    assert [*cleaning.manual_page(page.encode())] == [expected]
    assert [*cleaning.manual_page(gzip.compress(page.encode()))] == [expected]


def test_a_page_that_only_points_to_another_is_empty() -> None:
    assert [*cleaning.manual_page(b".so man1/ls.1\n")] == [""]


def test_html_loses_what_leads_to_other_pages() -> None:
    page = """<html><head><title>no</title><style>no</style></head><body>
    <div id="banner"><a href="x"><span>no</span></a></div>
    <ul class="docnav top"><li><a>no</a></li></ul>
    <p id="title"><a><img src="x"/></a>no</p>
    <h1>One</h1><div class="para">two <code>three</code>
       four<br/>five &amp; six<wbr> seven</div>
    <div class="toc"><dl><dt>no</dt></dl></div><a class="indexterm"></a><p>eight</p>
    <ul class="docnav"><li>no</li></ul></body></html>"""
    (text,) = cleaning.html_page(page.encode())
    assert text.split() == ["One", "two", "three", "four", "five", "&", "six", "seven", "eight"]
    assert "One\ntwo three\nfour\nfive" in text


def test_an_element_that_is_not_closed_does_not_swallow_the_rest() -> None:
    (text,) = cleaning.html_page(b"<div class='toc'><li>no<li>no</div><p>yes</p>")
    assert text == "yes"


def test_lists_of_entries_sentences_and_tasks_are_documents() -> None:
    entries = json.dumps({"1": {"title": "Oslo", "extract": "A city."}}).encode()
    assert [*cleaning.summaries(entries)] == ["Oslo\nA city."]
    found = [*cleaning.sentences(json.dumps([f"{i}." for i in range(50)]).encode())]
    assert [len(each.splitlines()) for each in found] == [20, 20, 10]
    task = {"task_description": "Add.", "input_output_spec": "a, b", "code_sample": "a + b", "practice": 1}
    assert [*cleaning.code_tasks(json.dumps(task).encode())] == ["Add.\na, b\na + b"]
