"""`reproduce-paper-tables`: its files read back, its page in a real browser, its errors."""

import csv
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest
from playwright.sync_api import Browser, sync_playwright
from rich.console import Console

from analysis.reproduce import Options, parse, reproduce
from pipelines.errors import UserError
from tests.analysis.conftest import known
from tests.conftest import SMALL

Command = Callable[..., subprocess.CompletedProcess[str]]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def results(make_store: Callable, tmp_path: Path, **changes: object) -> Path:
    make_store(["+sweep=nano"], **changes)
    options = Options(store=str(tmp_path / "store"), results=str(tmp_path / "results"), sweep="nano")
    return reproduce(options, Console(quiet=True))


def test_every_format_holds_the_numbers(make_store: Callable, tmp_path: Path) -> None:
    folder = results(make_store, tmp_path)
    number = f"{100 * known('ce', 1, 'grpo', 10, 'Chain-5', 'avg@8'):.2f}"
    with (folder / "tables" / "grpo-ce-nano.csv").open() as file:
        (row,) = [row for row in csv.DictReader(file) if row["RL step"] == "10"]
    assert row["Chain-5 Avg@8"] == number
    markdown = (folder / "tables" / "grpo-ce-nano.md").read_text()
    assert number in markdown
    assert "One seed." in markdown
    latex = (folder / "tables" / "grpo-ce-nano.tex").read_text()
    assert number in latex
    assert r"\toprule" in latex
    tidy = pd.read_csv(folder / "measurements.csv")
    (value,) = tidy.query(
        "objective == 'ce' and stage == 'grpo' and step == 10 and benchmark == 'Chain-5' and metric == 'avg@8'"
    )["value"]
    assert f"{100 * value:.2f}" == number
    for name in ("pretraining-nano", "rl-nano", "before-after-nano"):
        assert (folder / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert "<svg" in (folder / "figures" / f"{name}.svg").read_text()


def test_latex_is_balanced(make_store: Callable, tmp_path: Path) -> None:
    for path in (results(make_store, tmp_path) / "tables").glob("*.tex"):
        text = path.read_text()
        assert text.count("{") == text.count("}")
        assert not re.search(r"(?<!\\)[%_]", text.split(r"\label")[0]), path
        assert not set("βλ±–") & set(text), path


def test_the_page_is_self_contained(make_store: Callable, tmp_path: Path) -> None:
    page = (results(make_store, tmp_path) / "report.html").read_text()
    links = re.findall(r"(?:src|href)=\"([^\"]+)\"", page)
    assert all(link.startswith("#") for link in links)
    targets = set(re.findall(r"id=\"([^\"]+)\"", page))
    assert {link[1:] for link in links} <= targets
    assert "50.75" in page  # what the study reports for precision after RL on the 10B


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no Chromium here: install the package chromium")
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


@pytest.mark.browser
def test_the_page_in_a_browser(make_store: Callable, tmp_path: Path, browser: Browser) -> None:
    """No error, no request; a number's link opens its stage run; a phone need not scroll sideways; print is clean."""
    folder = results(make_store, tmp_path, leave_out=lambda run: run.checkpoint == "step-000020")
    page = browser.new_page(viewport={"width": 390, "height": 844})
    errors: list[str] = []
    requests: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("request", lambda request: requests.append(request.url))
    page.goto((folder / "report.html").as_uri())
    assert page.locator("figure svg").count() == 3
    assert page.locator("section table").count() == 10
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.locator("#missing code").inner_text().startswith("shaping-run -m +sweep=nano")
    cell = page.locator("#grpo-ce-nano tbody td a").first
    target = cell.get_attribute("href")
    cell.click()
    assert page.locator(f"{target}").get_attribute("open") is not None
    assert page.locator(f"{target} pre").is_visible()
    page.emulate_media(media="print")
    assert not page.locator(".runs").is_visible()
    assert page.locator("#grpo-ce-nano table").is_visible()
    assert errors == []
    assert len(requests) == 1
    page.close()


@pytest.mark.slow
def test_a_trained_study_has_no_gaps(study: Path, shaping_run: Command) -> None:
    """The command on a store that was really trained: tables of the two settings in it, and no missing number."""
    overrides = ",".join(f'"{o}"' for o in [*SMALL, "objective=ce,precision"])
    finished = shaping_run("scale=nano", f"overrides=[{overrides}]", cwd=study, module="analysis.reproduce")
    assert finished.returncode == 0, finished.stderr
    tables = study / "results" / "nano" / "tables"
    assert {p.stem for p in tables.glob("grpo-*.md")} == {"grpo-ce-nano", "grpo-precision-nano"}
    for path in tables.glob("*.md"):
        assert "–" not in path.read_text()
    assert "missing" not in finished.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["scael=nano"], "scael: there is no such key; did you mean 'scale'"),
        (["nano"], "nano: it is not of the form key=value"),
        (["seeds=[x]"], "seeds"),
    ],
)
def test_mistyped_options_are_named(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse(arguments)


def test_no_store_is_said(tmp_path: Path, shaping_run: Command) -> None:
    finished = shaping_run("store=nowhere", cwd=tmp_path, module="analysis.reproduce")
    assert finished.returncode == 2
    assert "store=nowhere: there is no such folder; run a sweep first" in finished.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_corrupt_spec_is_named(make_store: Callable, tmp_path: Path) -> None:
    _, store = make_store(["objective=ce"])
    next(store.root.glob("grpo/*/spec.json")).write_text("{")
    with pytest.raises(UserError, match=r"spec\.json: it is not readable JSON"):
        reproduce(Options(store=str(store.root), sweep="nano", results=str(tmp_path / "results")), Console(quiet=True))
    assert not (tmp_path / "results").exists()


def test_results_are_replaced_whole(make_store: Callable, tmp_path: Path) -> None:
    folder = results(make_store, tmp_path)
    (folder / "tables" / "old.csv").write_text("from another time")
    options = Options(store=str(tmp_path / "store"), results=str(tmp_path / "results"), sweep="nano")
    reproduce(options, Console(quiet=True))
    assert not (folder / "tables" / "old.csv").exists()
    assert [p.name for p in folder.parent.iterdir()] == ["nano"]


def test_an_unwritable_place_is_named(make_store: Callable, tmp_path: Path) -> None:
    make_store(["objective=ce"])
    with pytest.raises(UserError, match="results=/proc: it cannot be written"):
        reproduce(Options(store=str(tmp_path / "store"), results="/proc", sweep="nano"), Console(quiet=True))
