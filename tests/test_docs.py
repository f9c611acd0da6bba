"""The site: pages come from files and code, and the checker of links finds dead ones."""

from tests.check_links import dead_links


def test_dead_links_are_found(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "index.html").write_text('<a href="deep/page.html#there">a</a><a href="https://x.org/none">b</a>')
    (tmp_path / "deep" / "page.html").write_text('<h1 id="there"></h1><a href="../#top">c</a><img src="none.png">')
    (tmp_path / "404.html").write_text('<a href="/deep/page.html#here">d</a><a href="/../secret.html">e</a>')
    assert dead_links(tmp_path) == [
        "404.html: /deep/page.html#here",
        "404.html: /../secret.html",
        "deep/page.html: ../#top",
        "deep/page.html: none.png",
    ]
