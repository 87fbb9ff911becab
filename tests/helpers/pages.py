"""A page of a report as a reader of HTML sees it."""

from html.parser import HTMLParser

from expertsteer.reporting.page import write_report

VOID = set("area base br col embed hr img input link meta source track wbr".split())


class Page(HTMLParser):
    """Elements and text of a page; fails where elements are not closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.texts, self.rows = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.texts.append(data)
        if "tr" in self.open:
            self.rows[-1].append(data)

    @property
    def text(self):
        return squeezed("".join(self.texts))

    def attributes(self, name):
        return [attrs[name] for _, attrs in self.elements if name in attrs]


def squeezed(text):
    return " ".join(text.split())


def page_of(evaluation, folder):
    return Page(write_report(evaluation, folder).read_text("utf-8"))
