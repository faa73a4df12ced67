"""The report page of SIMULATED records in a real headless Chromium, worked by keyboard; every test ends without an error of the page."""

import json
import re
import shlex
from urllib.parse import quote

import pandas as pd
import pytest

from analysis.claims import NOT_RUN
from analysis.layout import Layout
from analysis.load import load, predictions
from analysis.page import details, page
from analysis.page_command import claims
from analysis.page_data import COSTS, mean_costs
from analysis.tables import table

from .browser import Browser
from .simulate import record, scores, small_store

HOSTILE = "<img src=x onerror=alert(1)>\"'&\u2028`${alert(2)}"
"""A cell's name is its folder's, so it holds no slash; the names of methods and the text of logs do."""
SCRIPT = f"</script><script>alert(3)</script>{HOSTILE}"
TABLE = "#view-results .scroll[aria-label='results of toy']"


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    root = small_store(tmp_path_factory.mktemp("browser") / "runs")
    for i, (method, accuracy) in enumerate((("full_ft", 0.7), ("lora", 0.75))):
        for seed in (0, 1):
            predicted = scores(method, seed, accuracy)
            record(
                root,
                f"b{i}{seed}",
                method,
                seed,
                predicted,
                task="toy/b",
                protocol="toy/b@heldout",
                trainable=(99_950, 3_000)[i],
                config=({}, {"r": 8})[i],
            )
    text = scores("x", 0, 0.9).assign(prediction=SCRIPT, label=SCRIPT)
    record(root, HOSTILE, SCRIPT, 0, text, model=SCRIPT, note=SCRIPT, trainable=7)
    record(root, "other", "lora", 0, scores("x", 0, 0.8), model=SCRIPT, config={"r": 8})
    rows = [{"phase": "main", "step": i, "loss": 1 / i, "grad_norm": 1.0 * i} for i in range(1, 50)]
    (root / "lora0" / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for cell in ("lora0", HOSTILE):
        (root / cell / "log.txt").write_text(f"the log of it\n{SCRIPT}\n")
    return root


@pytest.fixture(scope="module")
def frame(store):
    return load(store)


@pytest.fixture(scope="module")
def lines():
    """Every claim, without counts."""
    return claims(None, [])


@pytest.fixture(scope="module")
def shown(store, frame, lines, tmp_path_factory):
    """The page's file."""
    built = table(frame, store, Layout(title=f"Simulated {SCRIPT}", heading=SCRIPT, baseline="full_ft"))
    file = tmp_path_factory.mktemp("page") / "page.html"
    file.write_text(page(built, frame, details(frame, store, commands={"lora0": "parebench method=lora seed=0"}), lines), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture
def tab(started, shown):
    """The page, freshly opened at a desktop's width; at the end it has raised, refused and asked nothing."""
    started.size(1280, 900)
    started.prefer("light")
    started.send("Page.navigate", url="about:blank")
    started.open(shown)
    yield started
    problems, started.problems = started.problems, []
    assert problems == []


def texts(tab, selector):
    """The visible elements' texts."""
    return tab.run(f"[...document.querySelectorAll({json.dumps(selector)})].filter((e) => e.checkVisibility()).map((e) => e.textContent)")


def names(tab):
    return texts(tab, f"{TABLE} tbody th")


def column(tab, at):
    return texts(tab, f"{TABLE} tbody tr td:nth-child({at})")


def reopen(tab, shown, hash_):
    tab.send("Page.navigate", url="about:blank")
    tab.open(shown, hash_)


def test_the_policy_stops_a_foreign_script(tab):
    tab.run("(() => { const s = document.createElement('script'); s.textContent = 'window.ran = true'; document.body.append(s); })()")
    tab.run("(() => { const s = document.createElement('img'); s.setAttribute('onerror', 'window.ran = true'); s.src = 'x:'; })()")
    tab.run("new Promise((done) => setTimeout(done, 200))")
    assert tab.run("typeof ran") == "undefined"
    assert len(tab.problems) >= 2 and all("violates the following Content Security Policy" in text for text in tab.problems)
    tab.problems.clear()


def test_hostile_names_make_no_element_and_run_nothing(tab, shown):
    assert SCRIPT in texts(tab, "#view-results tbody th") and tab.run("document.title") == f"Simulated {SCRIPT}"
    for hash_ in ("#view=cells", "#view=cost", "#view=examples", "#view=notes", f"#cell={quote(HOSTILE)}"):
        reopen(tab, shown, hash_)
        assert tab.run("document.querySelectorAll('img, iframe, object, embed, [onerror]').length") == 0
    tab.until("document.querySelector('#cell pre') !== null")
    assert tab.run("document.getElementById('cell-title').textContent") == SCRIPT
    log, command = texts(tab, "#cell pre")
    assert log == f"the log of it\n{SCRIPT}" and shlex.split(command)[2] == HOSTILE
    scripts = tab.run("[...document.scripts].map((s) => s.type || 'own')")
    assert scripts.count("own") == 1 and set(scripts) == {"own", "application/json", "text/plain"}


def test_a_column_is_sorted_by_keyboard_and_says_so(tab):
    at = 1 + texts(tab, f"{TABLE} thead th").index("toy/a@heldout accuracy ↑")
    head = f"{TABLE} thead th:nth-child({at})"
    tab.focus(f"{head} button")
    tab.press("Enter")
    numbers = [float(text.split()[0]) for text in column(tab, at)]
    assert tab.run(f"document.querySelector({json.dumps(head)}).getAttribute('aria-sort')") == "descending"
    assert numbers == sorted(numbers, reverse=True) and len(set(numbers)) > 3
    tab.focus(f"{head} button")
    tab.press("Enter")
    assert [float(text.split()[0]) for text in column(tab, at)] == sorted(numbers)
    assert tab.run(f'document.querySelectorAll("{TABLE} [aria-sort]").length') == 1
    tab.until("location.hash.includes('sort=')")


def test_empty_cells_stay_last_in_both_directions(tab):
    at = 1 + texts(tab, f"{TABLE} thead th").index("toy/b@heldout accuracy ↑")
    for _ in range(2):
        tab.focus(f"{TABLE} thead th:nth-child({at}) button")
        tab.press("Enter")
        assert [text == "–" for text in column(tab, at)] == [False] * 2 + [True] * 3  # noqa: RUF001


def test_search_is_typed_and_kept_in_the_address(tab, shown):
    tab.focus("#q")
    tab.press(*"LORA toy")
    assert names(tab) == ["lora"] and "1 of 7 rows" in texts(tab, "#count")
    tab.until("location.hash.includes('q=LORA+toy')")
    reopen(tab, shown, "#q=bitfit")
    assert names(tab) == ["bitfit"] and tab.run("document.getElementById('q').value") == "bitfit"


def test_filters_by_keyboard(tab):
    tab.focus("#family")
    tab.press("a")
    assert tab.run("document.getElementById('family').value") == "adapters" and names(tab) == ["lora"]
    tab.press("Home")
    tab.focus("#task")
    tab.press("End")
    assert tab.run("document.getElementById('task').value") == "toy/b"
    assert names(tab) == ["full_ft", "lora"] and "toy/a@heldout accuracy ↑" not in texts(tab, f"{TABLE} thead th")
    tab.focus("#model")
    tab.press("End")
    assert tab.run("document.getElementById('model').value") == "toy"


def test_the_filtered_list_of_cells_is_the_frames(tab, shown, frame):
    reopen(tab, shown, "#view=cells")
    assert sorted(texts(tab, "#view-cells tbody th")) == sorted(frame["cell"])
    failed = [text for text in texts(tab, "#view-cells tbody tr") if text.endswith("diverged: the loss is not finite")]
    assert len(failed) == 1 and failed[0].startswith("bitfit2")
    tab.focus("#q")
    tab.press(*"diverged")
    assert texts(tab, "#view-cells tbody th") == ["bitfit2"]


def test_arrow_keys_reach_a_cell_and_enter_opens_it(tab, store):
    tab.focus(f"{TABLE} tbody tr:first-child button")
    assert tab.run(f"document.querySelectorAll(\"{TABLE} tbody button[tabindex='0']\").length") == 1, "one stop of the Tab key per table"
    for _ in range(10):
        row = tab.run("document.activeElement.closest('tr').querySelector('th').textContent")
        if row == "lora":
            break
        tab.press("ArrowDown")
    assert row == "lora"
    tab.press("Enter")
    tab.until("document.getElementById('cell').open && document.querySelectorAll('#cell svg').length === 2")
    assert tab.run("location.hash").endswith("cell=lora0")
    assert texts(tab, ".siblings a") == ["seed 0", "seed 1", "seed 2"]
    tables = texts(tab, "#cell table")
    assert any("lr0.001" in text for text in tables) and any("parameters.trainable_method3000" in text for text in tables)
    assert any("packages.torch2.13.0" in text for text in tables)
    assert texts(tab, "#cell pre")[0].startswith("the log of it")
    commands = ["parebench method=lora seed=0", f"parebench-report reproduce lora0 --store {store}"]
    assert texts(tab, "#cell pre")[1] == "\n\n".join(commands)
    tab.press("Escape")
    tab.until("!document.getElementById('cell').open && !location.hash.includes('cell')")


def test_a_curve_is_read_by_arrow_keys(tab, shown):
    reopen(tab, shown, "#cell=lora0")
    tab.until("document.querySelectorAll('#cell svg').length === 2")
    tab.focus("#cell svg")
    said = "document.querySelector('#cell svg').getAttribute('aria-label')"
    assert tab.run(said).startswith("main loss: 0.0204 at step 49")
    tab.press("ArrowLeft")
    assert tab.run(said).startswith("main loss: 0.0208 at step 48; lowest 0.0204, highest 1")
    tab.press("Home")
    assert tab.run(said).startswith("main loss: 1 at step 1")


def test_the_back_button_closes_a_cell(tab, shown):
    reopen(tab, shown, "#view=cells")
    tab.run("change({ cell: 'lora1' }, true)")
    tab.until("document.getElementById('cell').open")
    tab.run("history.back()")
    tab.until("!document.getElementById('cell').open && state.view === 'cells'")


def test_a_cell_that_is_not_there_is_a_sentence(tab, shown):
    reopen(tab, shown, "#cell=nope")
    assert "This page has no cell nope." in texts(tab, "#cell p")


def test_tips_come_with_the_focus_and_go_with_escape(tab):
    tab.focus(f"{TABLE} tbody tr:first-child button")
    tab.press("ArrowDown", "ArrowUp")
    (tip,) = texts(tab, "#tip")
    assert re.match(r"bitfit, toy, toy/a@heldout: 0\.9; sd 0; 2 of 3 seeds \(seeds 0, 1, 2\); 1 diverged; not ranked; Enter", tip)
    assert tab.run("document.activeElement.getAttribute('aria-describedby')") == "tip"
    tab.press("Escape")
    assert texts(tab, "#tip") == []
    tab.press("ArrowRight", "ArrowRight")
    assert texts(tab, "#tip")[0] == "bitfit, toy, toy/b@heldout: not run"


def test_differences_of_two_rows_equal_the_predictions(tab, shown, store):
    reopen(tab, shown, "#view=examples&a=full_ft&b=lora&model=toy&of=0")
    tab.until("document.getElementById('differ') !== null")
    right = {}
    for method in ("full_ft", "lora"):
        own = [predictions(store, f"{method}{seed}", f"evals/{method}{seed}.parquet").set_index("example")["score"] for seed in range(3)]
        right[method] = pd.concat(own, axis=1).sort_index()
    lines = []
    for seed in range(3):
        a, b = (right[method].iloc[:, seed] == 1 for method in ("full_ft", "lora"))
        lines.append(f"seed {seed}{(a & b).sum()}{(a & ~b).sum()}{(~a & b).sum()}{(~a & ~b).sum()}")
    assert texts(tab, "#counted tbody tr") == lines
    total = {method: table.sum(axis=1) for method, table in right.items()}
    differ = total["full_ft"] != total["lora"]
    assert texts(tab, "#differ") == [f"{differ.sum()} of 200 examples differ over these seeds."]
    listed = texts(tab, "#view-examples [role=grid] tbody tr")
    assert 0 < len(listed) == min(60, differ.sum())
    ids = texts(tab, "#view-examples [role=grid] tbody th")
    gaps = [abs(total["full_ft"][one] - total["lora"][one]) for one in ids]
    assert gaps == sorted(gaps, reverse=True)
    first = ids[0]
    assert listed[0].endswith(f"{total['full_ft'][first]:.0f}/3{total['lora'][first]:.0f}/3")


def test_the_second_method_and_the_seed_are_picked_by_keyboard(tab, shown):
    reopen(tab, shown, "#view=examples&model=toy&of=0&a=full_ft&b=lora")
    tab.until("document.getElementById('differ') !== null")
    tab.focus("#examples-b")
    tab.press("n")
    tab.until("[...document.querySelectorAll('#counted th')].some((th) => th.textContent === 'only none right')")
    assert texts(tab, "#counted tbody th") == ["seed 0", "seed 1", "seed 2"], "one run that no seed can change pairs with every seed"
    tab.focus("#examples-seed")
    tab.press("End")
    tab.until("document.querySelectorAll('#counted tbody tr').length === 1")
    assert texts(tab, "#counted tbody th") == ["seed 2"]


def test_claims_are_filtered_by_verdict(tab, shown, lines):
    reopen(tab, shown, "#view=claims")
    assert f"{len(lines)} claims" in texts(tab, "#count")
    tab.focus("#verdict")
    tab.press(*NOT_RUN)
    wanted = sum(line.verdict == NOT_RUN for line in lines)
    assert f"{wanted} of {len(lines)} claims" in texts(tab, "#count")
    assert set(texts(tab, "#view-claims [role=grid] .verdict")) == {NOT_RUN}


def test_the_front_is_what_nothing_beats(tab, shown, frame):
    reopen(tab, shown, "#view=cost&column=0&model=toy")
    costs = {label: values for (model, label, name), values in mean_costs(frame).items() if (model, name) == ("toy", "toy/a@heldout")}
    means = frame[(frame["model"] == "toy") & (frame["column"] == "toy/a@heldout")].groupby("label")["value"].mean()
    ranked = {label: (costs[label][0], means[label]) for label in costs if label != "bitfit"}
    beaten = {a for a, (x, y) in ranked.items() for u, v in ranked.values() if u <= x and v >= y and (u, v) != (x, y)}
    (said,) = texts(tab, "#front")
    assert set(said.removeprefix("On the front: ").partition(". ")[0].split(", ")) == set(ranked) - beaten
    assert tab.run("document.querySelectorAll('#plot .mark').length") == 5
    assert tab.run("[...document.querySelectorAll('#plot .hollow')].map((m) => m.getAttribute('aria-label').split(',')[0])") == ["bitfit"]


def test_marks_are_walked_by_keys_and_costs_switched(tab, shown):
    reopen(tab, shown, "#view=cost&column=0&model=toy")
    tab.focus("#plot .mark[tabindex='0']")
    first = texts(tab, "#hover")[0]
    tab.press("ArrowRight")
    assert texts(tab, "#hover")[0] != first and "trainable parameters" in first
    tab.focus("#cost")
    tab.press("End")
    assert tab.run("document.getElementById('cost').value") == list(COSTS)[-1]
    assert list(COSTS.values())[-1] in texts(tab, "#plot text")
    tab.focus("#plot .mark[tabindex='0']")
    tab.press("Enter")
    tab.until("document.getElementById('cell').open")


def ground(tab):
    return tab.run("getComputedStyle(document.body).backgroundColor")


def test_theme_follows_the_system_and_the_switch(tab, shown):
    light = ground(tab)
    tab.prefer("dark")
    dark = ground(tab)
    assert light == "rgb(247, 248, 249)" and dark == "rgb(20, 23, 26)"
    tab.focus("#theme")
    tab.press("l")
    assert tab.run("document.getElementById('theme').value") == "light" and ground(tab) == light
    tab.prefer("light")
    reopen(tab, shown, "#theme=dark")
    assert ground(tab) == dark


@pytest.mark.parametrize("view", ["results", "cost", "cells", "examples", "claims", "notes"])
def test_a_phone_scrolls_tables_inside_their_boxes(tab, shown, view):
    tab.size(390, 844)
    reopen(tab, shown, f"#view={view}&model=toy")
    tab.run("new Promise((done) => setTimeout(done, 300))")
    assert tab.run("[document.documentElement.scrollWidth, innerWidth]") == [390, 390]
    if view in ("results", "cells", "claims"):
        box = f"document.querySelector('#view-{view} .scroll:not([hidden])')"
        assert tab.run(f"{box}.scrollWidth > {box}.clientWidth")
        tab.run(f"{box}.scrollLeft = 150")
        stays = tab.run(f"{box}.querySelector('tbody th').getBoundingClientRect().left - {box}.getBoundingClientRect().left")
        assert abs(stays) <= 1.5


def test_a_phone_shows_a_cell_in_its_width(tab, shown):
    tab.size(390, 844)
    reopen(tab, shown, "#cell=lora0")
    tab.until("document.querySelectorAll('#cell svg').length === 2")
    assert tab.run("[document.getElementById('cell').scrollWidth, document.getElementById('cell').clientWidth].join()") in (
        "390,390",
        "375,375",
    )


def test_the_tab_key_starts_with_the_skip_link(tab):
    tab.press("Tab")
    assert tab.run("document.activeElement.id") == "skip" and tab.run("document.activeElement.getBoundingClientRect().left") >= 0
    tab.press("Enter")
    assert tab.run("document.activeElement.id") == "main" and tab.run("state.view") == "results"
    order = []
    for _ in range(6):
        tab.press("Tab")
        order.append(tab.run("document.activeElement.id || document.activeElement.className"))
    assert order == ["q", "family", "model", "task", "scroll", ""], "filters, then the table's box, then its first heading"


def test_printing_shows_every_row(tab, shown, lines):
    reopen(tab, shown, "#view=claims")
    assert len(texts(tab, "#view-claims [role=grid] tbody tr")) == 60
    tab.run("dispatchEvent(new Event('beforeprint'))")
    assert len(texts(tab, "#view-claims [role=grid] tbody tr")) == len(lines) > 60
    tab.send("Emulation.setEmulatedMedia", media="print")
    assert tab.run("getComputedStyle(document.querySelector('#view-claims .scroll')).maxHeight") == "none"
    assert texts(tab, "#nav") == []
    tab.send("Emulation.setEmulatedMedia", media="")


def test_a_filter_that_the_page_does_not_have_is_none(tab, shown):
    reopen(tab, shown, "#family=nope&model=nope&task=nope")
    assert "7 rows" in texts(tab, "#count") and tab.run("document.getElementById('family').value") == ""


def test_nothing_found_is_said(tab, shown):
    reopen(tab, shown, "#view=cells&q=nothing+like+it")
    assert texts(tab, "#view-cells tbody tr") == ["Nothing matches these filters."]


def test_ranks_across_tasks_are_shown(started, tmp_path):
    for i, method in enumerate(("one", "two", "three")):
        for task in "abc":
            for seed in (0, 1):
                predicted = scores(method, seed, 0.6 + 0.1 * i)
                record(tmp_path, f"{method}{task}{seed}", method, seed, predicted, task=f"toy/{task}", protocol=f"toy/{task}@heldout")
    frame = load(tmp_path)
    built = table(frame, tmp_path, Layout())
    (tmp_path / "page.html").write_text(page(built, frame, details(frame, tmp_path)), encoding="utf-8")
    started.open(tmp_path / "page.html")
    (ranking,) = built.rankings
    shown = texts(started, "#view-results .scroll:not(:has([role=grid])) tbody th + td")
    assert shown == [one.label for one in ranking.ranking.standings] == ["three", "two", "one"]
    assert started.problems == []
