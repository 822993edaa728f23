"""The report's page in Chromium: opened from disk without a network, clicked through, measured, and photographed.

Needs Debian's package chromium. Where CI=true it must be there; elsewhere these tests are skipped without it.
Screenshots are left in tests/browser/screenshots/.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, BrowserContext, Page, Route, expect, sync_playwright

from tests.support import toy
from textdistill.commands.distill import distill
from textdistill.commands.evaluate import baseline
from textdistill.commands.reports import report
from textdistill.config import compose
from textdistill.reporting.tables import Format

CHROMIUM = shutil.which("chromium")
SCREENSHOTS = Path(__file__).parent / "screenshots"
DESKTOP, PHONE = (1280, 900), (375, 812)
SETTINGS = (
    "distilled_data.label_type=unrestricted",
    "train.max_steps=6",
    "train.val_steps=2",
    "train.log_interval=1",
    "train.n_eval_model=2",
    "evaluate.n_eval_model=3",
)
# The lowest ratio of text to its background that WCAG calls AA, for text of any size.
CONTRAST = 4.5

pytestmark = pytest.mark.skipif(
    CHROMIUM is None and os.environ.get("CI") != "true", reason="no chromium: apt-get install chromium"
)


@pytest.fixture(scope="module")
def pages(tiny_bert: Path, toy_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pages about a run whose names are markup beside baselines, about a sweep, and about two tasks."""
    root = tmp_path_factory.mktemp("pages")
    cls, every = (f"distilled_data.attention_label_type={rows}" for rows in ("cls", "all"))
    (root / "hostile").mkdir()
    config = toy.hostile_config(tiny_bert, toy_data, root / "hostile", *SETTINGS, cls)
    distill(config, {"overrides.yaml": f"- {json.dumps('x=' + toy.HACK)}\n"})
    for kind in ("full", "random"):
        config.base.save_dir = str(root / "hostile" / "runs" / kind)
        baseline(kind, config)

    def run(name: str, *more: str) -> None:
        given = [f"base.save_dir={root / name}", *SETTINGS, "train.max_steps=2", "evaluate.n_eval_model=2", *more]
        distill(compose(*toy.overrides(tiny_bert, toy_data, root, *given)))

    for lr in (0.5, 2.0):
        for rate in (0.1, 1.0):
            run(f"sweep/{lr}-{rate}", every, f"distilled_data.lr_init={lr}", f"train.lr_inputs_embeds={rate}")
    # Alike but for the seed, which is a cell of two runs.
    run("sweep/again", every, "distilled_data.lr_init=2.0", "train.lr_inputs_embeds=1.0", "base.seed=7")
    for name, sizes in (("imbalanced", (90, 7, 3)), ("many", (2,) * 150)):
        data = toy.write_classes(root / f"data-{name}", sizes)
        run(name, cls, f"data.path={data}", f"data.task_name={name}", "distilled_data.lr_init=1.0")
    config = compose(
        *toy.overrides(tiny_bert, data.parent / "data-imbalanced", root, f"base.save_dir={root}/imbalanced/full")
    )
    config.data.task_name = config.model.task_name = config.evaluate.task_name = "imbalanced"
    baseline("full", config)
    results = {
        "hostile": [root / "hostile" / "runs"],
        "imbalanced": [root / "imbalanced"],
        "many": [root / "many"],
        "sweep": [root / "sweep"],
    }
    results["both"] = [*results["hostile"], root / "sweep" / "0.5-0.1"]
    written = {}
    for name, folders in results.items():
        written[name] = root / f"{name}.html"
        written[name].write_text(report(folders, Format.html), encoding="utf-8")
    return written


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--disable-background-networking"])
        yield browser
        browser.close()


@dataclass
class Watched:
    """What a browser did besides showing pages."""

    contexts: list[BrowserContext] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


Opened = Callable[..., Page]


@pytest.fixture
def opened(browser: Browser, pages: dict[str, Path]) -> Iterator[Opened]:
    """Opens a page from disk without a network; at the end nothing was asked for outside, and nothing went wrong."""
    watched = Watched()

    def route(route: Route) -> None:
        if route.request.url.startswith("file://"):
            route.continue_()
        else:
            route.abort()

    def opened(name: str, size: tuple[int, int] = DESKTOP, scheme: Any = "light") -> Page:
        context = browser.new_context(
            offline=True, color_scheme=scheme, viewport={"width": size[0], "height": size[1]}, reduced_motion="reduce"
        )
        watched.contexts.append(context)
        context.route("**/*", route)
        page = context.new_page()
        url = pages[name].as_uri()
        page.on("request", lambda request: watched.outside.append(request.url) if request.url != url else None)
        page.on("console", lambda line: watched.errors.append(line.text) if line.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: watched.errors.append(str(error)))
        page.on("dialog", lambda dialog: watched.errors.append(dialog.message))
        page.goto(url)
        return page

    yield opened
    for context in watched.contexts:
        context.close()
    assert watched.outside == []
    assert watched.errors == []


def data_of(page: Page, kind: str) -> Any:
    """The numbers behind a section of the page."""
    element = page.locator(f".{kind}").first
    return json.loads(page.locator(f"#{element.get_attribute('data-json')}").text_content() or "")


def choose(page: Page, **where: int) -> None:
    for name, index in where.items():
        page.locator(f"select.{name}").first.select_option(index=index)


# --- What it shows


def test_sections(opened: Opened) -> None:
    page = opened("hostile")
    expect(page.locator("h1")).to_have_text(toy.HOSTILE_TASK)
    headings = [text.strip() for text in page.locator("h2").all_text_contents()]
    assert headings == [
        *(
            "Scores",
            "Classes",
            "All results",
            "What was distilled",
            "Learning curves",
            "Learned labels",
            "Inside the samples",
        ),
        *("Cost", "How it was made"),
    ]
    for link in page.locator("nav a").all():
        link.click()
        target = page.locator(link.get_attribute("href") or "")
        expect(target).to_be_in_viewport()
    expect(page.locator("table.bars tbody tr")).to_have_count(4)
    bar = page.locator("table.bars rect.own").bounding_box()
    track = page.locator("table.bars td.bar svg").first.bounding_box()
    assert bar is not None
    assert track is not None
    mean = float((page.locator("table.bars td.number").first.text_content() or "").split()[0])
    assert bar["width"] / track["width"] == pytest.approx(mean, abs=0.01)
    expect(page.locator("figure.chart")).to_have_count(4)
    expect(page.locator("figure.chart line.mark[y1='14']")).to_have_count(4)


def test_markup_in_names_is_shown_and_does_nothing(opened: Opened) -> None:
    page = opened("hostile")
    assert page.evaluate("window.hacked") is None
    names = page.locator("select.sample option").all_text_contents()
    assert names == [f"{i}: {name}" for i, name in enumerate(sorted(toy.HOSTILE_CLASSES.values()))]
    expect(page.locator("pre code")).to_have_text(f"textdistill distill 'x={toy.HACK}'")
    expect(page.get_by_role("rowheader", name=toy.HOSTILE_FOLDER, exact=True)).to_be_visible()
    tokens = page.locator(".tokens .nearest").all_text_contents()
    for sample in range(3):
        choose(page, sample=sample)
        tokens += page.locator(".tokens li").all_text_contents()
    assert any(toy.HACK in token for token in tokens)
    assert page.locator(".tokens script").count() == 0
    assert page.evaluate("window.hacked") is None


# --- Choosers


def test_samples_layers_and_heads(opened: Opened) -> None:
    page = opened("hostile")
    view = data_of(page, "inside")
    for sample, layer, head in ((0, 0, 0), (2, 1, 3), (1, 0, 2)):
        choose(page, sample=sample, layer=layer, head=head)
        row, position, share, before, after, weight = view["attention"]["strongest"][sample][layer][head][0]
        readout = page.locator(".readout")
        expect(readout).to_contain_text(f"layer {layer}, head {head}: its strongest label is {share:.3f}")
        expect(readout).to_contain_text(f"Its row counts {weight:.2f} times")
        expect(readout).to_contain_text(
            f"{view['attention']['divergence']['before'][sample][layer][head]:.3f} before, "
        )
        cells = page.locator("table.strongest tbody tr").first.locator("td").all_text_contents()
        token = view["tokens"]["nearest"][sample][position][0][0]
        numbers = [f"{value:.3f}" for value in (share, before, after, weight)]
        assert cells == [str(row), str(position), token, *numbers]
        expect(page.locator(".map")).to_have_count(3)
        expect(page.locator(".map .picked").first).to_have_attribute("y", str(head))
        expect(page.locator(".tokens .nearest").nth(position)).to_have_text(token)


def test_map_is_drawn_from_the_label(opened: Opened) -> None:
    """The strongest position of a head is its darkest cell; a click on a row chooses its head."""
    page = opened("hostile")
    choose(page, sample=1, layer=1)
    view = data_of(page, "inside")
    for head in range(4):
        _, position, *_ = view["attention"]["strongest"][1][1][head][0]
        drawn = page.locator(".map svg").first.locator(f"rect.cell[y='{head}']")
        opacity = {cell.get_attribute("x"): float(cell.get_attribute("fill-opacity") or 0) for cell in drawn.all()}
        assert opacity[str(position)] == max(opacity.values())
    box = page.locator(".map svg").nth(1).bounding_box()
    assert box is not None
    page.locator(".map svg").nth(1).click(position={"x": box["width"] / 2, "y": box["height"] * 2.5 / 4})
    expect(page.locator("select.head")).to_have_value("2")
    expect(page.locator(".readout")).to_contain_text("layer 1, head 2")


def test_attention_of_all_rows(opened: Opened) -> None:
    page = opened("sweep")
    choose(page, sample=2, layer=1, head=3)
    view = data_of(page, "inside")
    assert view["attention"]["rows"] == list(range(8))
    expect(page.locator(".map .picked")).to_have_count(0)
    expect(page.locator(".profile")).to_be_hidden()
    row, position, *_ = view["attention"]["strongest"][2][1][3][0]
    cells = page.locator(".map svg").first.locator("rect.cell")
    darkest = max(cells.all(), key=lambda cell: float(cell.get_attribute("fill-opacity") or 0))
    assert (darkest.get_attribute("y"), darkest.get_attribute("x")) == (str(row), str(position))


def column(page: Page, name: str) -> list[str]:
    headings = page.locator("table.results thead th").all_text_contents()
    at = headings.index(name)
    return [row.locator("th, td").nth(at).text_content() or "" for row in page.locator("table.results tbody tr").all()]


def test_table_sorts(opened: Opened) -> None:
    page = opened("hostile")
    values = column(page, "accuracy")
    for state, order in (("ascending", sorted(values)), ("descending", sorted(values, reverse=True))):
        page.get_by_role("button", name="accuracy", exact=True).click()
        assert column(page, "accuracy") == order
        expect(
            page.locator("table.results").get_by_role("columnheader", name="accuracy", exact=True)
        ).to_have_attribute("aria-sort", state)
    # What has no value stays last, whichever way.
    for _ in range(2):
        page.get_by_role("button", name="minutes").click()
        assert [bool(text) for text in column(page, "minutes")] == [True, False, False]
    expect(page.locator("table.results [aria-sort]")).to_have_count(1)


def test_sweep(opened: Opened) -> None:
    page = opened("sweep")
    sweep = data_of(page, "sweep")
    assert set(sweep["keys"]) == {"base.seed", "distilled_data.lr_init", "train.lr_inputs_embeds"}
    down, across = "distilled_data.lr_init", "train.lr_inputs_embeds"
    for metric in ("validation loss", "test accuracy"):
        page.locator(".sweep select.rows").select_option(down)
        page.locator(".sweep select.columns").select_option(across)
        page.locator(".sweep select.metric").select_option(metric)
        assert page.locator(".sweep thead th").all_text_contents() == [down, "0.1", "1.0"]
        for i, a in enumerate(("0.5", "2.0")):
            for j, b in enumerate(("0.1", "1.0")):
                runs = [
                    r["metrics"][metric]
                    for r in sweep["runs"]
                    if (r["settings"][down], r["settings"][across]) == (a, b)
                ]
                assert len(runs) == (2 if (a, b) == ("2.0", "1.0") else 1)
                cell = page.locator(".sweep tbody tr").nth(i).locator("td").nth(j)
                expect(cell).to_have_text(f"{sum(runs) / len(runs):.4f}" + ("2 runs" if len(runs) == 2 else ""))
    expect(page.get_by_text("The rest of the page describes one run")).to_be_visible()


def test_imbalanced_classes(opened: Opened) -> None:
    """The majority class stands below the other rows; each class has its support."""
    page = opened("imbalanced")
    last = page.locator("table.bars tbody tr").last
    expect(last.locator("th")).to_contain_text("majority class")
    expect(last.locator("td.number")).to_contain_text("0.9000")
    expect(page.locator("table.confusion tbody tr")).to_have_count(3)
    supports = page.locator("table.classes tbody tr td:nth-child(2)").all_text_contents()
    assert supports == ["90", "7", "3"]
    expect(page.locator("input.find")).to_have_count(0)


def test_many_classes(opened: Opened) -> None:
    """The matrix and the labels are cut with a count; classes and samples are found by a part of their names."""
    page = opened("many")
    expect(page.locator("table.confusion tbody tr")).to_have_count(16)
    expect(page.locator("table.confusion caption")).to_contain_text("16 classes with the most mistakes of 150")
    expect(page.locator("table.classes tbody tr")).to_have_count(150)
    page.get_by_label("find a class").fill("CLASS 14")
    expect(page.locator("table.classes tbody tr:visible")).to_have_count(10)
    expect(page.locator("output")).to_have_text("10 of 150 classes")
    page.get_by_label("find a sample").fill("class 149")
    expect(page.locator("select.sample option")).to_have_count(1)
    expect(page.locator(".readout")).to_contain_text("149: class 149, layer 0, head 0")
    page.get_by_label("find a sample").fill("no such class")
    expect(page.locator("select.sample option")).to_have_count(1)


# --- For everybody


def test_keyboard(opened: Opened) -> None:
    page = opened("hostile")
    page.locator("select.sample").focus()
    for key, name in (("ArrowDown", "sample"), ("ArrowDown", "layer"), ("ArrowDown", "head")):
        page.keyboard.press(key)
        expect(page.locator(f"select.{name}")).to_have_value("1")
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none"
        page.keyboard.press("Tab")
    expect(page.locator(".readout")).to_contain_text("layer 1, head 1")
    page.get_by_role("button", name="accuracy", exact=True).focus()
    for key, state in (("Enter", "ascending"), ("Space", "descending")):
        page.keyboard.press(key)
        expect(page.locator("th[aria-sort]")).to_have_attribute("aria-sort", state)
    page.locator("summary", has_text="Configuration").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("rowheader", name="lr_inputs_embeds")).to_be_visible()


def test_everything_that_can_be_used_is_reached_with_tab(opened: Opened) -> None:
    page = opened("hostile")
    wanted = page.locator("a, button, select, summary, [tabindex='0']").count()
    hidden = page.locator("details:not([open]) [tabindex='0']").count()
    index = "[...document.querySelectorAll('*')].indexOf"
    nothing = page.evaluate(f"{index}(document.body)")
    reached = set()
    for _ in range(wanted + 5):
        page.keyboard.press("Tab")
        reached.add(page.evaluate(f"{index}(document.activeElement)"))
    assert len(reached - {nothing}) == wanted - hidden


# Colours and sizes have nothing to do with each other: one run of axe, which takes seconds, for each of them is enough.
@pytest.mark.parametrize(("size", "scheme"), [(DESKTOP, "light"), (PHONE, "dark")], ids=["desktop", "phone"])
@pytest.mark.parametrize("name", ["hostile", "sweep", "both", "many"])
def test_axe_finds_nothing(name: str, size: tuple[int, int], scheme: str, opened: Opened) -> None:
    page = opened(name, size, scheme)
    for summary in page.locator("summary").all():
        summary.click()
    checked = Axe().run(page).response
    assert {rule["id"]: [node["target"] for node in rule["nodes"]] for rule in checked["violations"]} == {}
    assert "color-contrast" in {rule["id"] for rule in checked["passes"]}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_of_all_text(scheme: str, opened: Opened) -> None:
    """Of every piece of text to what lies behind it, colours that are mixed in included."""
    page = opened("sweep", scheme=scheme)
    for summary in page.locator("summary").all():
        summary.click()
    ratios = page.evaluate(
        """() => {
          const paint = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
          const over = (colors) => {
            paint.clearRect(0, 0, 1, 1);
            for (const color of colors) { paint.fillStyle = color; paint.fillRect(0, 0, 1, 1); }
            return [...paint.getImageData(0, 0, 1, 1).data].slice(0, 3);
          };
          const luminance = (rgb) => {
            const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
            const [r, g, b] = rgb.map((v) => linear(v / 255));
            return 0.2126 * r + 0.7152 * g + 0.0722 * b;
          };
          const ratios = [];
          const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
          while (walker.nextNode()) {
            const element = walker.currentNode.parentElement;
            if (!walker.currentNode.data.trim() || element.closest("script, option")) continue;
            if (!element.checkVisibility()) continue;
            const behind = [];
            for (let e = element; e; e = e.parentElement) behind.unshift(getComputedStyle(e).backgroundColor);
            const style = getComputedStyle(element);
            const color = element instanceof SVGElement ? style.fill : style.color;
            const [a, b] = [luminance(over(["white", ...behind])), luminance(over(["white", ...behind, color]))];
            ratios.push([(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), walker.currentNode.data.trim()]);
          }
          return ratios;
        }"""
    )
    assert len(ratios) > 300
    assert [text for ratio, text in ratios if ratio < CONTRAST] == []


@pytest.mark.parametrize("name", ["hostile", "sweep", "both", "imbalanced", "many"])
def test_no_sideways_scrolling(name: str, opened: Opened) -> None:
    page = opened(name)
    for summary in page.locator("summary").all():
        summary.click()
    for width in (320, 375, 768, 1280):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.evaluate("window.scrollTo(1000, 0)")
        assert page.evaluate("window.scrollX") == 0


def test_without_its_script(browser: Browser, pages: dict[str, Path]) -> None:
    context = browser.new_context(offline=True, java_script_enabled=False)
    page = context.new_page()
    page.goto(pages["hostile"].as_uri())
    expect(page.locator("figure.chart")).to_have_count(4)
    expect(page.get_by_text("The page’s own script draws this section")).to_be_visible()
    context.close()


@pytest.mark.parametrize(("kind", "size"), [("desktop", DESKTOP), ("phone", PHONE)], ids=["desktop", "phone"])
@pytest.mark.parametrize("name", ["hostile", "sweep", "imbalanced", "many"])
def test_screenshots(name: str, kind: str, size: tuple[int, int], opened: Opened) -> None:
    page = opened(name, size)
    SCREENSHOTS.mkdir(exist_ok=True)
    for scheme, color in (("light", "rgb(244, 246, 249)"), ("dark", "rgb(14, 18, 24)")):
        page.emulate_media(color_scheme=scheme)
        shot = page.screenshot(path=SCREENSHOTS / f"{name}-{kind}-{scheme}.png", full_page=True)
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == color
        assert len(shot) > 20_000
