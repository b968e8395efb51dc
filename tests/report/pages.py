"""Reads a page as a browser would, strictly, and what pages are made of."""

from html.parser import HTMLParser

VOID = {"br", "link", "meta", "wbr"}


class Page(HTMLParser):
    """A page: its elements in order, and its tables by their captions."""

    def __init__(self, path):
        super().__init__()
        self.text = path.read_text(encoding="utf-8")
        self.elements, self.open, self.tables = [], [], {}
        self._inside = []  # a table may be inside a line of another one
        self.feed(self.text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        assert len(dict(attributes)) == len(attributes)
        if tag in VOID:
            return
        self.open.append(tag)
        if tag == "table":
            self._inside.append(["", []])
        elif tag == "tr":
            self._inside[-1][1].append([])
        elif tag in ("th", "td"):
            self._inside[-1][1][-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag == "table":
            caption, rows = self._inside.pop()
            self.tables[caption] = rows

    def handle_data(self, data):
        place = max(
            (n for n, tag in enumerate(self.open) if tag == "table"), default=len(self.open)
        )
        inside = self.open[place:]
        if "caption" in inside:
            self._inside[-1][0] += data
        elif {"th", "td"} & set(inside):
            self._inside[-1][1][-1][-1] += data

    def each(self, tag, attribute):
        """An attribute of all elements that have it."""
        return [had[attribute] for name, had in self.elements if name == tag and attribute in had]

    def bytes(self):
        """Names and bytes of the bars, as texts."""
        items = self.text.split('<ol class="bytes">')[1].split("</ol>")[0].split("<li>")[1:]
        return [
            int(item.split('class="size">')[1].split("<")[0].replace(",", "")) for item in items
        ]


def check(page):
    """What holds for each page: it loads nothing, its places are there, and each but once."""
    places = [had["id"] for _, had in page.elements if "id" in had]
    assert len(set(places)) == len(places)
    for _, had in page.elements:
        assert not {"src", "style", "onclick", "onload", "onerror"} & set(had)
        for word in ("aria-controls", "aria-labelledby"):
            assert had.get(word, places[0]) in places
    assert page.each("link", "href") == ["data:,"]
    links = page.each("a", "href")
    assert links and all(link[0] == "#" and link[1:] in places for link in links)
    assert "http:" not in page.text and "https:" not in page.text
    names = [name for name, _ in page.elements]
    assert names.count("script") == names.count("style") == names.count("h1") == 1
    assert not {"img", "iframe", "object", "embed", "form", "base"} & set(names)
