"""README and the pages of docs: links, names, messages and figures that are there."""

import ast
import base64
import configparser
import inspect
import json
import re
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest

import keras_qareg as qareg
from docs import draw, tables
from docs.hooks.docstrings import SITE, page_of, rewritten
from docs.hooks.messages import PACKAGE, filled, messages, owners
from docs.hooks.tutorials import page
from keras_qareg import __version__
from tests.helpers import ROOT
from tests.test_public import FUNCTIONS, MODULES

pytestmark = pytest.mark.one_backend

PAGES = sorted((ROOT / "docs").rglob("*.md"))
TOP = sorted(ROOT.glob("*.md"))
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.py"))
SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg")
URL = SETUP["metadata"]["url"]


def prose(path):
    """A page without its code; of a tutorial, the comments."""
    text = path.read_text()
    if path.suffix == ".py":
        return "\n".join(line[2:] for line in text.splitlines() if line.startswith("# "))
    if path.name == "changelog.md":
        text = (ROOT / "CHANGELOG.md").read_text()
    return re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)


def anchors(path):
    """What may stand behind `#` in a link to a page."""
    text = prose(path)
    titles = re.findall(r"^#+ (.+)$", text, flags=re.M)
    bare = (re.sub(r"[^\w\- ]", "", title.lower()).strip() for title in titles)
    return {re.sub(r"[ -]+", "-", title) for title in bare} | set(re.findall(r'id="(.+?)"', text))


def links(path):
    """The targets of links and pictures, those of headings aside."""
    return re.findall(r"\]\(([^)\s]+)\)", prose(path))


def target(path, link):
    """The file of this repository that a link leads to, and the place in it; None: it is outside."""
    name, _, place = link.partition("#")
    if name.startswith(("http://", "https://")):
        inside = re.fullmatch(rf"{re.escape(URL)}/(?:blob|raw)/main/(.+)", name)
        return (ROOT / inside[1], place) if inside else None
    found = path if not name else path.parent / name
    source = found.with_suffix(".py")
    return (source if not found.exists() and source in TUTORIALS else found), place


@pytest.mark.parametrize("path", [*TOP, *PAGES, *TUTORIALS], ids=lambda p: str(p.relative_to(ROOT)))
def test_no_link_is_dead(path):
    for link in links(path):
        if (found := target(path, link)) is None:
            continue
        file, place = found
        assert file.resolve().exists(), f"{link}: no such file"
        assert not place or place in anchors(file.resolve()), f"{link}: no such heading"


def test_readme_is_short_and_links_work_from_anywhere():
    """It is the page of a package index, too, where relative links lead to nothing."""
    readme = ROOT / "README.md"
    assert len(readme.read_text().splitlines()) <= 120
    assert all(link.startswith("https://") for link in links(readme))


def test_there_is_one_address():
    owner, name = URL.removeprefix("https://github.com/").split("/")
    site = f"https://{owner}.github.io/{name}/"
    settings = (ROOT / "mkdocs.yml").read_text()
    assert f"link: {URL}, " in settings and f"site_url: {site}\n" in settings
    assert f"Documentation = {site}\n" in (ROOT / "setup.cfg").read_text()
    for path in [*TOP, *PAGES, *ROOT.glob("*.cff"), *ROOT.glob(".github/**/*.*")]:
        for found in re.findall(rf"https?://github\.com/[\w.-]+/{name}\b", path.read_text()):
            assert found == URL, f"{path.name}: {found}"


def test_every_page_and_tutorial_is_in_the_navigation():
    found = re.findall(r": (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), flags=re.M)
    pages = {str(path.relative_to(ROOT / "docs")) for path in PAGES}
    assert sorted(found) == sorted(pages | {f"tutorials/{path.stem}.md" for path in TUTORIALS})


def test_every_figure_is_on_a_page_beside_the_command_that_draws_it():
    figures = {path.name for path in (ROOT / "docs" / "figures").iterdir()}
    shown = set()
    for path in PAGES:
        for found in re.finditer(r"\]\(figures/(.+?)\)\n\n((?:.+\n)*)", path.read_text()):
            name, below = found.groups()
            assert f"Drawn by `python -m docs.draw {Path(name).stem}`" in below, name
            shown.add(name)
    assert shown == figures == set(draw.FIGURES)


@pytest.mark.parametrize(
    "name", ["size", "pareto", "wnq_error", "cifar10_vgg16", "cifar_wnq_errors"]
)
def test_figures_are_drawn_from_rows_that_are_kept(tmp_path, name):
    file = tmp_path / f"{name}.png"
    draw.FIGURES[file.name](file)
    assert file.read_bytes().startswith(b"\x89PNG") and file.stat().st_size > 10_000


def test_each_row_leads_to_a_commit():
    for file in sorted((ROOT / "results").glob("*.jsonl")):
        for row in map(json.loads, file.read_text().splitlines()):
            commit = row.get("recorded") or row.get("commit", "none")
            assert re.fullmatch(r"[0-9a-f]{7,}", commit), (file.name, row)


@pytest.mark.parametrize("name", tables.texts())
def test_tables_are_those_of_the_rows_that_are_kept(name):
    assert (ROOT / "results" / f"{name}.txt").read_text() == tables.text(name)


@pytest.mark.parametrize("old", ["| a |\n| --- |\n| 1 |\n", "```text\na\n```\n", ""])
def test_what_stands_around_a_table_stays(old):
    mark = "<!-- python -m docs.tables peers -->\n\n"
    after = "\nThen:\n\n```text\nb\n```\n\n| c |\n"
    assert (
        tables.written(f"First.\n\n{mark}{old}{after}")
        == f"First.\n\n{mark}{tables.peers()}{after}"
    )


def test_pages_show_tables_as_they_are_and_no_other():
    """To mend it: `python -m docs.tables`."""
    shown = set()
    for path in tables.pages():
        page = path.read_text()
        assert tables.written(page) == page, path.name
        shown |= {found["name"] for found in tables.MARK.finditer(page)}
        for found in re.finditer(r"(.*\n\n)```text\n(.*)\n[- ]{9,}\n", page):
            assert "docs.tables" in found[1], f"{path.name}: no program writes {found[2]}"
    assert shown == {*tables.texts(), *tables.OTHERS}


def public_names():
    """Functions and classes that a user may import."""
    yield from (f"keras_qareg.{name}" for name in FUNCTIONS)
    for name in set(MODULES) - {"numerics"}:
        module = getattr(qareg, name)
        here = getattr(module, "__all__", None)
        for label, member in vars(module).items():
            own = getattr(member, "__module__", None) == module.__name__
            public = label in here if here else own and not label.startswith("_")
            if public and (inspect.isclass(member) or inspect.isfunction(member)):
                yield f"{module.__name__}.{label}"
    for path in PACKAGE.glob("numerics/[a-z]*.py"):
        yield f"keras_qareg.numerics.{path.stem}"


def test_every_public_name_is_in_the_reference():
    # As a list it would be patterns, and no member of a module would be on its page.
    assert "\n            filters: public\n" in (ROOT / "mkdocs.yml").read_text()
    shown, headings = set(), set()
    for path in ROOT.glob("docs/api/*.md"):
        shown |= set(re.findall(r"^::: (\S+)$", path.read_text(), flags=re.M))
        headings |= set(re.findall(r"^ +heading: (\S+)$", path.read_text(), flags=re.M))
    for name in public_names():
        assert name in shown | headings or name.rpartition(".")[0] in shown - {"keras_qareg"}, name
    for name in shown:
        module, _, member = name.rpartition(".")
        if not hasattr(import_module(module), member):
            import_module(name)  # raises where there is no such thing
    # A folder of the name of a function would be shown in its place.
    modules = {f"keras_qareg.{module}" for module in MODULES}
    for name in shown - modules:
        assert not (PACKAGE / name.partition(".")[2].replace(".", "/")).is_dir(), name


def test_every_public_name_has_an_example_and_a_page_of_the_site():
    for name in public_names():
        owner, _, label = name.rpartition(".")
        found = (
            import_module(name) if ".numerics." in name else getattr(import_module(owner), label)
        )
        text = inspect.getdoc(found)
        # Of what functions give, theirs are the examples; a class may be there to be derived from.
        if inspect.isfunction(found) or ".layers." in name:
            assert ">>> " in text, f"{name} has no example"
        place = page_of(text)
        assert place, f"{name} names no page of the site"
        page = ROOT / "docs" / f"{place[0]}.md"
        assert page.exists() and (not place[1] or place[1] in anchors(page)), f"{name}: {place}"


def test_there_is_one_list_of_words():
    """Each under its own anchor, in order; messages use no others for the same."""
    entries = re.findall(
        r'^- <a id="(.+)"></a>\*\*(.+?)\*\*: ', (ROOT / "docs/glossary.md").read_text(), flags=re.M
    )
    assert entries == sorted(entries, key=lambda entry: entry[1].lower())
    assert all(re.sub(r"\W+", "-", word.lower()) == anchor for anchor, word in entries)
    others = "palette|lookup|look-up|bit.?width|cluster|quantis|codeword|dequanti|fake.?quant|lut"
    for path in PACKAGE.rglob("*.py"):
        for text in messages(path.read_text()):
            # What TFMOT calls it, and names in code, stay.
            ours = re.sub(r"tfmot\S+|`.*?`|'.*?'", "", text)
            assert not re.search(rf"\b({others})", ours, flags=re.I), text


def test_docstrings_become_sections_and_links():
    see = f"See also: {SITE}"
    text = f"What.\n\nExample:\n\n>>> 1\n1\n\n{see}concepts.html#few-values"
    link = "[concepts: few values](../concepts.html#few-values)"
    assert rewritten(text) == f"What.\n\nExamples:\n    >>> 1\n    1\n\nSee also: {link}"
    assert rewritten(f"What.\n\n{see}report.html") == "What.\n\nSee also: [report](../report.html)"


def resolved(name):
    """The public thing of a name as texts write it: `export.litert`, `qareg.strip`, `Sine`; or None."""
    places = [qareg, *(getattr(qareg, module) for module in MODULES)]
    for place in places:
        found = place
        for part in name.removeprefix("qareg.").removeprefix("keras_qareg.").split("."):
            found = getattr(found, part, None)
        if inspect.isfunction(found) or inspect.isclass(found):
            return found
    return None


def calls(text):
    """Calls in a text's inline code: their names and keywords."""
    for code in re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text):
        try:
            tree = ast.parse(code)
        except SyntaxError:
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and not isinstance(node.func, ast.Call):
                yield ast.unparse(node.func), [word.arg for word in node.keywords if word.arg]


@pytest.mark.parametrize("path", [*TOP, *PAGES, *TUTORIALS], ids=lambda p: str(p.relative_to(ROOT)))
def test_arguments_that_texts_name_are_there(path):
    for name, keywords in calls(prose(path)):
        if found := resolved(name):
            parameters = inspect.signature(found).parameters
            assert set(keywords) <= set(parameters), f"{name}({', '.join(keywords)})"


def test_every_message_is_in_troubleshooting():
    text = (ROOT / "docs" / "troubleshooting.md").read_text()
    covered = owners(text)
    shown = plain(filled(text))
    for path in sorted(PACKAGE.rglob("*.py")):
        source = path.read_text()
        assert not messages(source) or path in covered, f"{path} is under no heading"
        # As the source says them, found in another way than the page finds them.
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Constant) and str(node.value).startswith("Expected "):
                assert plain(node.value) in shown


def plain(text):
    """A text without quotes and marks, of which HTML has its own."""
    return re.sub("</?code>|&[#x27a-z]+;|[`'\"<>]", "", text).strip()


def test_messages_of_a_source():
    source = '''
def f(x):
    """Expected nothing of this."""
    if x:
        raise ValueError(f"Expected `x` to be none of {x}. " "Received: one.")
    warnings.warn(f"{x} is left as it is.", stacklevel=2)
    return "Expected something else: " + x
'''
    assert messages(source) == [
        "Expected `x` to be none of …. Received: one.",
        "Expected something else: …",
        "… is left as it is.",
    ]


def test_versions_have_one_source():
    assert SETUP["metadata"]["version"] == "attr: keras_qareg.__version__"
    assert f"\n## {__version__}" in (ROOT / "CHANGELOG.md").read_text()
    for name in ("pyproject.toml", "mkdocs.yml", "CITATION.cff"):
        assert not re.search(r"^version\b", (ROOT / name).read_text(), flags=re.M), name


def test_a_notebook_becomes_a_page():
    pixel = base64.b64encode(b"a picture").decode()
    cells = [
        SimpleNamespace(cell_type="markdown", source="# Title"),
        SimpleNamespace(
            cell_type="code",
            source="1 + 1",
            outputs=[{"text": "printed\n"}, {"data": {"image/png": pixel, "text/plain": "figure"}}],
        ),
    ]
    text, pictures = page(SimpleNamespace(cells=cells), "name")
    assert text == (
        '# Title\n\n[Notebook](name.ipynb){ download="name.ipynb" } · '
        '[Python file](name.py){ download="name.py" }\n\n'
        "```python\n1 + 1\n```\n\n```{.text .output}\nprinted\n```\n\n"
        "![What the lines above draw](name_0.png)\n"
    )
    assert pictures == {"name_0.png": b"a picture"}
