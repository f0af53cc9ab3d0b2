"""Laws of the parts of pages: every tag is one of HTML and is closed, and text is escaped."""

from html.parser import HTMLParser

from smalti.app import html as parts

KNOWN = {"html", "head", "meta", "title", "style", "body", "main", "table", "tr", "th", "td", "div", "b", "span"}
KNOWN |= {"figure", "img", "figcaption", "p", "h1", "h2", "small", "code"}
EMPTY = {"meta", "img"}


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.text = [], []

    def handle_starttag(self, tag, attrs):
        assert tag in KNOWN, tag
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_a_page_has_only_tags_of_html_all_of_them_closed_and_its_text_escaped():
    rows = [["a <b> & c", "1.5"], ["d", "-"]]
    body = [parts.html_table(["name", "PSNR"], rows), parts.figures(("codes", "64,000"))]
    page = Tags()
    page.feed(parts.document("A & B", body).decode())
    assert page.open == []
    text = "".join(page.text)
    assert "a <b> & c" in text
    assert "64,000" in text
    assert "A & B" in text
