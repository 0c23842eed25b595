"""The report in a real browser: what it shows and does, that it loads nothing, and that no text in it can run."""

import io
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, sync_playwright
from rich.console import Console

from analysis.reproduce import Options, reproduce
from pipelines.evaluation.samples import SAMPLES, write_rows
from pipelines.files import read_sealed, write_sealed
from sweeps.store.stage_runs import Store
from tests.analysis.conftest import composed_once, planned, write_run
from tests.published import publish

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
HOSTILE = "</script><script>window.ran=1</script><img src=x onerror='window.ran=1'>{{7*7}}\u2028<!--"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no Chromium here: install the package chromium")
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


def with_samples(store: Store, graph: Any, text: str) -> None:
    for run in graph.runs.values():
        evaluation = store.root / "evaluate" / run.signature
        if run.checkpoint == "step-000020" and evaluation.exists():
            rows = [
                {"benchmark": "Chain-3", "question": f"{text}{q}", "response": text, "reward": float(q == 0)}
                for q in range(2)
            ]
            write_rows(evaluation / SAMPLES, rows)
            publish(evaluation)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of two seeds with answers, in which seed 2's last RL evaluations are missing."""
    root = tmp_path_factory.mktemp("report")
    graph, store = planned(("+sweep=nano", "seed=1,2")), Store.create(root / "store")
    for run in graph.runs.values():
        if not (run.stage == "evaluate" and run.checkpoint == "step-000020" and run.config["seed"] == 2):
            write_run(store, run)
    with_samples(store, graph, "7+5-3")
    with pytest.MonkeyPatch.context() as patch:
        composed_once(patch)
        options = Options(store=str(store.root), results=str(root / "results"), sweep="nano")
        return reproduce(options, Console(quiet=True))


@pytest.fixture
def page(browser: Browser, folder: Path) -> Iterator[Page]:
    """The report, opened; a script error, a warning on the console or any request fails the test."""
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    troubles = watched(page)
    page.goto((folder / "report.html").as_uri())
    yield page
    page.close()
    assert troubles == []


def watched(page: Page) -> list[str]:
    troubles: list[str] = []
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("console", lambda message: troubles.append(message.text) if message.type in ("error", "warning") else None)
    page.on("request", lambda request: None if request.url.startswith("file:") else troubles.append(request.url))
    return troubles


pytestmark = pytest.mark.browser


@pytest.mark.parametrize(("width", "height"), [(1400, 900), (400, 800)])
def test_the_first_screen_holds_sentence_table_and_figure(page: Page, width: int, height: int) -> None:
    page.set_viewport_size({"width": width, "height": height})
    for part in (
        "#sentence",
        "#headline table",
        "#headline-figure .panel >> nth=0",
        "#headline-figure .panel >> nth=1",
    ):
        box = page.locator(part).bounding_box()
        assert box is not None
        assert box["x"] >= 0, part
        assert box["y"] >= 0, part
        assert box["x"] + box["width"] <= width, part
        assert box["y"] + box["height"] <= height, part
    # What the boxes hold is not cut by a frame that scrolls.
    assert page.evaluate(
        "headline.scrollWidth <= headline.clientWidth && headline.scrollHeight <= headline.clientHeight"
    )
    assert page.locator("#headline tbody tr").count() == 5
    assert page.locator("#headline-figure svg").first.bounding_box()["width"] > 150  # type: ignore[index]
    assert "Over 2 seeds" in page.locator("#sentence").inner_text()


def test_wide_intervals_fit_the_first_screen_of_a_phone(page: Page) -> None:
    page.set_viewport_size({"width": 400, "height": 800})
    page.evaluate(
        "document.querySelectorAll('.headline td:last-child small:not(.word)')"
        ".forEach(cell => { cell.textContent = '[−100.0, +100.0]'; })"
    )
    assert page.evaluate("headline.scrollWidth <= headline.clientWidth")
    for link in page.locator("nav a").all():
        box = link.bounding_box()
        assert box is not None
        assert box["x"] + box["width"] <= 400


def test_values_by_seed_are_on_the_page(page: Page) -> None:
    rows = [row.split("\t") for row in page.locator("#by-seed tbody tr").all_inner_texts()]
    assert [(row[0], row[1]) for row in rows[:3]] == [("ce", "1"), ("ce", "2"), ("precision", "1")]
    assert len(rows) == 10
    means = {row[0]: row[1] for row in (r.split("\t") for r in page.locator("#headline tbody tr").all_inner_texts())}
    by_seed = [float(row[2]) for row in rows if row[0] == "precision"]
    assert float(means["precision"].split()[0]) == pytest.approx(sum(by_seed) / 2, abs=0.011)


def test_commands_are_copied_and_the_origin_is_said_once(page: Page) -> None:
    page.evaluate("() => { navigator.clipboard.writeText = async (text) => { window.copied_here = text; }; }")
    page.locator("#made .copy-command").click()
    assert page.evaluate("window.copied_here") == page.locator("#made code").inner_text()
    assert page.locator("main").inner_text().count("Data: ") == 1


def test_the_page_is_drawn_at_once_without_a_script(browser: Browser, folder: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto((folder / "report.html").as_uri(), wait_until="commit")
    page.wait_for_load_state("load")
    assert page.locator(".panel svg").count() == page.locator(".panel").count() >= 10
    assert page.locator("tr.earlier").first.is_visible()
    context.close()


def columns_cut(page: Page) -> list[str]:
    """The tables of which a part is to the right of the page."""
    return page.evaluate(  # type: ignore[no-any-return]
        "[...document.querySelectorAll('table')].filter(t => t.checkVisibility())"
        ".filter(t => t.getBoundingClientRect().right > innerWidth + 1)"
        ".map(t => t.closest('section').id)"
    )


def test_print_has_every_row_and_column(page: Page) -> None:
    page.set_viewport_size({"width": 1047, "height": 700})  # A4 in landscape without its margins, 96 pixels per inch
    page.emulate_media(media="print")
    assert columns_cut(page) == []
    assert page.locator("section.table tbody tr:visible").count() == page.locator("section.table tbody tr").count()
    assert not page.locator(".filters").is_visible()
    assert page.locator(".panel svg:visible").count() == page.locator(".panel").count()


def test_a_phone_shows_every_number_without_scrolling_sideways(page: Page) -> None:
    page.set_viewport_size({"width": 400, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    cells = page.locator("#table-14-nano tbody tr:not(.earlier) td[data-v]")
    for box in cells.evaluate_all("all => all.map(cell => cell.getBoundingClientRect().right)"):
        assert box <= 400
    assert page.locator("#table-14-nano tbody td").first.get_attribute("data-label") == "average Avg@8"


def test_the_last_checkpoint_is_shown_and_the_others_on_request(page: Page) -> None:
    rows = page.locator("#table-03-nano tbody tr:visible")
    assert rows.count() == 3  # one for each setting of the family
    button = page.locator("#table-03-nano .earlier-rows")
    button.focus()
    page.keyboard.press("Enter")
    assert rows.count() == 12
    assert button.get_attribute("aria-expanded") == "true"
    page.keyboard.press("Enter")
    assert rows.count() == 3


@pytest.mark.parametrize("clipboard", [True, False])
def test_a_table_is_copied_as_csv_and_latex(page: Page, folder: Path, clipboard: bool) -> None:
    if clipboard:
        page.evaluate("() => { navigator.clipboard.writeText = async (text) => { window.copied_here = text; }; }")
    else:
        page.evaluate("() => { navigator.clipboard.writeText = async () => { throw new Error('refused'); }; }")
    texts = []
    for name in ("csv", "latex"):
        page.locator(f"#table-14-nano .copy[data-format={name}]").click()
        shown = "window.copied_here" if clipboard else "document.getElementById('text').value"
        texts.append(page.evaluate(shown))
        if not clipboard:
            page.locator("#copied .close").click()
    frame = pd.read_csv(io.StringIO(texts[0]))
    written = pd.read_csv(folder / "tables" / "table-14-nano.csv")
    assert frame["average Avg@8"].to_numpy() == pytest.approx(
        written["average Avg@8"].to_numpy(), rel=1e-4, nan_ok=True
    )
    assert frame["average Avg@8 low"].to_numpy() == pytest.approx(written["average Avg@8 low"].to_numpy(), abs=0.006)
    assert texts[1].startswith("\\begin{tabular}{ll")
    assert texts[1].count("\\\\") == len(frame) + 1


def test_every_stage_run_is_reachable_and_shows_what_differs(page: Page, folder: Path) -> None:
    assert page.locator("#count").inner_text() == "134 stage runs of 10 cells"
    page.locator("#find").fill("grpo nano/precision/seed1")
    page.locator("#cells a").first.click()
    chain = page.locator("#chain")
    assert "objective.beta: -0.25 (there 0)" in chain.inner_text()  # in the pre-training run at the end of the chain
    assert "differs from seed 2 in 1 keys" in chain.inner_text()
    assert chain.locator("svg.spark").count() >= 1
    link = chain.locator("a", has_text="ledger.jsonl").first.get_attribute("href")
    assert link is not None
    assert (folder / link).is_file()


def test_every_link_has_a_target_and_nothing_is_loaded(folder: Path) -> None:
    text = (folder / "report.html").read_text()
    markup = re.sub(r"<script.*?</script>", "", text, flags=re.S)
    links = re.findall(r"(?:src|href)=\"([^\"]+)\"", markup)
    targets = set(re.findall(r"id=\"([^\"]+)\"", markup))
    assert links
    assert all(link[1:] in targets or link.startswith("#run=") for link in links)
    assert "default-src &#39;none&#39;" in text
    assert "50.75" in text  # what the paper reports for precision after RL on the 10B


def test_figures_show_values_under_the_pointer(page: Page) -> None:
    assert page.locator(".panel svg").count() == page.locator(".panel").count() >= 10
    page.locator("#pretraining-nano .panel [data-tip]").first.hover(force=True)
    assert re.search(r"2 seeds$", page.locator("#tip").inner_text())


def test_figures_draw_the_measured_values(page: Page, folder: Path) -> None:
    panel = page.locator("#pretraining-nano .panel").first
    tips = panel.locator("[data-tip]").evaluate_all("all => all.map(mark => mark.dataset.tip)")
    shown = {}
    for tip in tips:
        objective, tokens, number, _ = tip.split("; ")
        shown[objective, int(tokens.split(": ")[1].replace(",", ""))] = float(number.split(" ")[0])
    frame = pd.read_csv(folder / "measurements.csv")
    frame = frame[(frame["stage"] == "pretrain") & (frame["metric"] == "perplexity") & frame["variant"].isna()]
    means = frame.groupby(["objective", "tokens"])["value"].mean().to_dict()
    assert shown == pytest.approx(means, rel=1e-3)


def test_a_number_links_to_its_stage_runs(page: Page) -> None:
    cell = page.locator("#table-14-nano tbody td a").first
    cell.click()
    dialog = page.locator("#lineage")
    dialog.wait_for(state="visible")
    titles = dialog.locator("h3").all_inner_texts()
    assert titles == [f"{s} nano/ce/seed{n}" for n in (1, 2) for s in ("evaluate", "midtrain", "pretrain")]
    assert "ledger.jsonl" in dialog.inner_text()
    dialog.locator("summary").first.click()
    assert "seed" in dialog.locator("pre").all_inner_texts()[0] or dialog.locator("pre").count() > 2
    page.keyboard.press("Escape")
    dialog.wait_for(state="hidden")


def test_sorting_by_keyboard(page: Page) -> None:
    head = page.locator("#table-03-nano tr.names th").nth(2)
    cells = page.locator("#table-03-nano tbody tr td:nth-of-type(1)")
    before = [float(v) for v in cells.evaluate_all("all => all.map(c => c.dataset.v)")]
    head.locator("button").focus()
    page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "ascending"
    assert [float(v) for v in cells.evaluate_all("all => all.map(c => c.dataset.v)")] == sorted(before)
    page.keyboard.press("Enter")
    assert [float(v) for v in cells.evaluate_all("all => all.map(c => c.dataset.v)")] == sorted(before, reverse=True)
    page.keyboard.press("Enter")
    assert [float(v) for v in cells.evaluate_all("all => all.map(c => c.dataset.v)")] == before


def test_filters(page: Page) -> None:
    page.select_option("[data-filter=objective]", "diversity")
    assert page.locator("section.table:visible").count() == 1 + 2 + 1 + 1  # models, two stages by beta, its RL, theory
    assert set(
        page.locator("#table-03-nano tbody tr:visible").evaluate_all("all => all.map(r => r.dataset.objective)")
    ) == {"diversity"}
    page.select_option("[data-filter=benchmark]", "Chain-4")
    heads = page.locator("#table-17-nano tr.names th:visible").all_inner_texts()
    assert [head.strip() for head in heads[:2]] == ["objective", "RL step"]
    assert set(page.locator("#table-17-nano tr.groups th:visible").all_inner_texts()) == {
        "average",
        "Chain-4",
        "paper, 4B",
    }
    page.select_option("[data-filter=objective]", "")
    page.select_option("[data-filter=benchmark]", "")
    assert page.locator("section.table:visible").count() == 11


def test_gaps_samples_and_claims_are_shown(page: Page) -> None:
    assert "9 of 134 stage runs are missing" in page.locator("#missing").inner_text()
    assert page.locator("#missing code").inner_text().startswith("shaping-run -m +sweep=nano seed=1,2")
    assert page.locator("#samples tbody tr").count() == 2
    assert page.locator("#samples thead th").all_inner_texts()[1:] == [
        "ce", "precision", "diversity", "tail_penalty", "head_reward"
    ]  # fmt: skip
    assert "ce seed 1 1 of 2; precision seed 1 1 of 2" in page.locator("#samples p").nth(2).inner_text()
    assert page.locator("#claims .claim").count() == 6
    assert "Scaling over model sizes: models of 1 size(s)" in page.locator("#figures").inner_text()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_no_accessibility_problem(browser: Browser, folder: Path, theme: Any) -> None:
    page = browser.new_page(color_scheme=theme)
    page.goto((folder / "report.html").as_uri())
    violations = Axe().run(page).response["violations"]
    assert [(v["id"], v["nodes"][0]["html"]) for v in violations] == []
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == {"light": "rgb(255, 255, 255)", "dark": "rgb(27, 27, 26)"}[theme]
    page.locator("#theme").click()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != background
    page.close()


def test_text_from_models_and_ledgers_cannot_run(browser: Browser, tmp_path: Path) -> None:
    """Hostile strings as answer, question, benchmark, model, objective, variant and environment."""
    graph, store = planned(("objective=ce,precision", "seed=1")), Store.create(tmp_path / "store")
    for run in graph.runs.values():
        folder = write_run(store, run)
        spec = read_sealed(folder / "spec.json")
        spec["labels"] |= {"model": HOSTILE, "objective": HOSTILE + spec["labels"]["objective"]}
        spec["environment"] |= {HOSTILE: HOSTILE}
        write_sealed(folder / "spec.json", spec)
        rows = read_sealed(folder / "result.json")["measurements"]
        for row in rows:
            row["benchmark"] = row["benchmark"].replace("Chain-4", HOSTILE)
        publish(folder, measurements=rows)
    with_samples(store, graph, HOSTILE)
    options = Options(store=str(store.root), results=str(tmp_path / "results"), sweep=None)
    folder = reproduce(options, Console(quiet=True))
    page = browser.new_page()
    troubles = watched(page)
    page.goto((folder / "report.html").as_uri())
    page.locator("section.table tbody td a:visible").first.click()
    page.locator("#lineage").wait_for(state="visible", timeout=5000)  # it opens when the address has changed
    page.keyboard.press("Escape")
    page.select_option("[data-filter=objective]", index=1)
    assert 0 < page.locator("section.table:visible").count() < page.locator("section.table").count()
    assert page.evaluate("window.ran") is None
    assert page.locator("img").count() == 0
    assert HOSTILE.split("\u2028")[0] in page.locator("#samples td pre").first.inner_text()
    assert "49" not in page.locator("#samples td pre").first.inner_text()
    assert troubles == []
    page.close()


@pytest.mark.slow
def test_a_huge_answer_is_cut_and_half_a_character_stops_nothing(make_store: Callable, tmp_path: Path) -> None:
    graph, store = make_store(["objective=ce"])
    with_samples(store, graph, "9" * 10_000_000 + "\ud83d")
    options = Options(store=str(store.root), results=str(tmp_path / "results"), sweep=None)
    text = (reproduce(options, Console(quiet=True)) / "report.html").read_text()
    assert text.count("… (9,995,002 more characters)") == 2  # of the questions, which have a number at their end
    assert text.count("… (9,995,001 more characters)") == 2  # of the answers
    assert len(text) < 5_000_000
    with_samples(store, graph, "half \ud83d")
    text = (reproduce(options, Console(quiet=True)) / "report.html").read_text()
    assert "half \ufffd" in text


def test_the_policy_stops_what_escaping_would_miss(browser: Browser, folder: Path, tmp_path: Path) -> None:
    """The browser refuses to run or load a script that is added to the file afterwards."""
    text = (folder / "report.html").read_text()
    path = tmp_path / "report.html"
    path.write_text(
        text.replace("</main>", '<script>window.ran=1</script><img src="http://127.0.0.1:9/x"></main>'),
        encoding="utf-8",
    )
    page = browser.new_page()
    refused: list[str] = []
    page.on("console", lambda message: refused.append(message.text))
    page.goto(path.as_uri())
    assert page.evaluate("window.ran") is None
    assert len([line for line in refused if "Content Security Policy" in line]) == 2
    page.close()
