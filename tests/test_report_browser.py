"""The report page in a real browser, opened from disk: drawn, filtered, sorted, searched, not hijacked."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from headless_browser import ask, errors, headless, started_browser, until
from report_runs import HOSTILE, make_hacked_run, make_run, make_tool_run

from mmreason.report.build import build_report
from mmreason.run_records import RunFolder, read_rollouts

pytestmark = headless


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    yield from started_browser(tmp_path_factory.mktemp("profile"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return make_run(tmp_path_factory.mktemp("runs") / "demo", steps=12, groups=3, group_size=4)


@pytest.fixture
def page(browser: Any, run: RunFolder) -> Any:
    browser.get(build_report(run.path).as_uri())
    browser.get_log("browser")
    browser.get(run.report.as_uri())
    yield browser
    assert errors(browser) == []


def set_filter(browser: Any, control: str, value: str) -> str:
    """Type into a filter as a person would, and return the new count line."""
    browser.execute_script(
        """
        const input = document.getElementById(arguments[0]);
        if (input.type === "checkbox") input.checked = arguments[1] === "on"; else input.value = arguments[1];
        document.querySelector(".count").textContent = "";
        input.dispatchEvent(new Event("input", {bubbles: true}));
        """,
        control,
        value,
    )
    count: str = until(lambda: ask(browser, 'document.querySelector(".count").textContent'))
    return count


def completions(browser: Any) -> list[str]:
    found: list[str] = ask(
        browser, '[...document.querySelectorAll(".completion")].map(c => c.textContent.toWellFormed())'
    )
    return found


def test_pictures_and_boxes_are_drawn(page: Any) -> None:
    until(lambda: ask(page, 'document.querySelector(".frame img").naturalWidth') == 160)
    assert ask(page, 'document.querySelectorAll(".group").length') >= 8
    first = 'document.querySelector(".group")'
    truth = ask(page, f'{first}.querySelector("rect.true").getBoundingClientRect().toJSON()')
    image = ask(page, f'{first}.querySelector("img").getBoundingClientRect().toJSON()')
    box = ask(page, 'JSON.parse(document.getElementById("data").textContent).groups[0].true_boxes[0]')
    scale = image["width"] / 160
    assert truth["left"] - image["left"] == pytest.approx(box[0] * scale, abs=2)
    assert truth["top"] - image["top"] == pytest.approx(box[1] * scale, abs=2)
    assert truth["width"] == pytest.approx((box[2] - box[0]) * scale, abs=4)
    colors = ask(page, f'["true", "predicted"].map(k => getComputedStyle({first}.querySelector("rect." + k)).stroke)')
    assert colors[0] != colors[1]
    assert "predicted" in ask(page, f'{first}.querySelector(".legend").textContent')


def test_a_chosen_rollout_shows_only_its_own_boxes(page: Any) -> None:
    visible = (
        '[...document.querySelector(".group").querySelectorAll(".layer")]'
        '.filter(layer => getComputedStyle(layer).display !== "none").length'
    )
    assert ask(page, visible) == 4
    page.execute_script('document.querySelector(".rollout").focus()')
    assert ask(page, visible) == 1
    assert ask(page, 'getComputedStyle(document.querySelector(".layer.on .looked")).display') == "inline"
    page.execute_script('document.querySelector(".rollout").blur()')
    assert ask(page, visible) == 4
    page.find_element("css selector", ".rollout header").click()
    assert ask(page, 'document.querySelector(".rollout").classList.contains("pinned")')
    assert ask(page, visible) == 1


def test_boxes_are_drawn_in_the_picture_that_they_lie_in(browser: Any, tmp_path: Path) -> None:
    folder = make_run(tmp_path, steps=2, groups=1, group_size=2)
    lines = list(read_rollouts(folder.rollouts))
    answers = ["image 2 [100, 100, 500, 500]", "image 1 [100, 100, 500, 500] [1, 1, 900, 900]"]
    for index, line in enumerate(lines):
        answer = answers[index % 2]
        (picture,) = line["images"]
        target = {"boxes": [[10, 10, 40, 40], [20, 20, 80, 80]], "labels": ["cat", "dog"], "image_index": [1, 0]}
        line |= {"images": [picture, picture], "target": target, "answer": answer, "box_frame": "relative_1000"}
        line |= {"completion": f"<think></think><answer>{answer}</answer>"}
    folder.rollouts.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    browser.get(build_report(folder.path).as_uri())
    until(lambda: ask(browser, 'document.querySelector(".frame img").naturalWidth'))
    drawn = (
        '[...document.querySelector(".group").querySelectorAll(".picture")].map('
        'p => [...p.querySelectorAll("rect.%s title")].map(t => t.textContent))'
    )
    assert ask(browser, drawn % "true") == [["dog [20, 20, 80, 80]"], ["cat [10, 10, 40, 40]"]]
    first, second = ask(browser, drawn % "predicted")
    assert len(first) == len(second) == 1, "one box each; the box that names no image is in none"
    captions = ask(browser, '[...document.querySelectorAll(".group figcaption")].slice(0, 2).map(c => c.textContent)')
    assert [caption.split(":")[0] for caption in captions] == ["image 1", "image 2"]
    browser.execute_script('document.querySelector(".rollout").focus()')
    on = '[...document.querySelector(".group").querySelectorAll(".picture")].map(p => p.querySelectorAll(".layer.on").length)'
    assert ask(browser, on) == [1, 1]
    assert "a box without image" in ask(browser, 'document.querySelector(".group").textContent')
    assert set_filter(browser, "f-why", "no_image").startswith("2 of 2 groups, 2 of 4 rollouts")
    assert errors(browser) == []


def test_curves_are_drawn_and_tell_their_values(page: Any) -> None:
    titles = ask(page, '[...document.querySelectorAll(".chart strong")].map(t => t.textContent)')
    assert titles[:4] == ["Reward", "Reward parts", "Held-out scores", "Completion length"]
    assert ask(page, 'document.querySelectorAll(".chart path.curve").length') >= 14
    assert ask(
        page,
        '[...document.querySelectorAll(".chart path")].every(p => !/NaN|undef/.test(p.getAttribute("d")))',
    )
    assert "at step 12" in ask(page, 'document.querySelector(".plot").getAttribute("aria-label")')
    page.execute_script(
        """
        const plot = document.querySelector(".plot"), area = plot.getBoundingClientRect();
        plot.dispatchEvent(new PointerEvent("pointermove", {clientX: area.left + 1, clientY: area.top + 50}));
        """
    )
    assert ask(page, '[...document.querySelectorAll(".chart .at")].every(a => a.textContent === "step 1")')


def test_filters_sorts_and_searches(page: Any) -> None:
    assert "36 of 36 groups, 144 of 144 rollouts" in ask(page, 'document.querySelector(".count").textContent')
    assert set_filter(page, "f-from", "5").startswith("24 of 36")
    assert set_filter(page, "f-to", "6").startswith("6 of 36")
    assert set(ask(page, '[...document.querySelectorAll(".group h3")].map(h => h.textContent)')) == {
        "step 5",
        "step 6",
    }

    page.find_element("css selector", "button[type=reset]").click()
    until(lambda: "36 of 36" in ask(page, 'document.querySelector(".count").textContent'))
    set_filter(page, "f-why", "format")
    assert all("<answer>" not in text for text in completions(page))
    assert set_filter(page, "f-why", "no_box").startswith("12 of 36 groups, 12 of")
    assert all("top left" in text for text in completions(page))
    set_filter(page, "f-why", "")

    set_filter(page, "f-part", "iou")
    set_filter(page, "f-low", "0.4")
    shown = ask(
        page,
        '[...document.querySelectorAll(".part")].map(p => p.textContent).filter(t => t.startsWith("iou"))',
    )
    assert shown
    assert all(float(text.split()[1]) >= 0.4 for text in shown)
    set_filter(page, "f-low", "")
    assert set_filter(page, "f-dataset", "photos").startswith("12 of 36")
    set_filter(page, "f-dataset", "")
    assert set_filter(page, "f-spread", "on").startswith("36 of 36")
    set_filter(page, "f-spread", "")

    set_filter(page, "f-order", "mean-down")
    means = ask(
        page, '[...document.querySelectorAll(".group .stats b:first-child")].map(b => parseFloat(b.textContent))'
    )
    assert len(means) >= 8
    assert means == sorted(means, reverse=True)
    set_filter(page, "f-order", "step-down")
    assert ask(page, 'document.querySelector(".group h3").textContent') == "step 12"

    assert set_filter(page, "f-query", "I WOULD say").startswith("18 of 36 groups, 18 of")
    assert ask(page, 'document.querySelector("mark").textContent') == "I would say"
    page.find_element("css selector", "button.rest").click()
    assert ask(page, 'document.querySelector(".group").querySelectorAll(".rollout").length') == 4
    assert set_filter(page, "f-query", "no such words").startswith("0 of 36")
    assert completions(page) == []


def test_hostile_text_is_shown_and_not_run(page: Any) -> None:
    set_filter(page, "f-query", "alert(1)")
    (text,) = completions(page)
    assert text.startswith("</script><script>alert(1)</script><img src=x onerror=alert(2)>")
    assert ask(page, 'document.querySelectorAll(".completion *:not(span):not(mark)").length') == 0
    assert ask(page, "document.scripts.length") == 2
    from selenium.common.exceptions import NoAlertPresentException

    with pytest.raises(NoAlertPresentException):
        page.switch_to.alert.text  # noqa: B018 - reading it is the question


def test_the_policy_stops_injected_code_and_requests(browser: Any, run: RunFolder) -> None:
    browser.get(build_report(run.path).as_uri())
    browser.execute_script(
        """
        const script = document.createElement("script");
        script.textContent = "window.hijacked = true";
        const image = document.createElement("img");
        image.src = "http://127.0.0.1:9/x.png";
        document.body.append(script, image);
        """
    )
    messages = until(lambda: errors(browser))
    assert not ask(browser, "window.hijacked")
    assert any("Content Security Policy" in message for message in messages)


def test_thousands_of_rollouts_are_rendered_little_by_little(browser: Any, tmp_path: Path) -> None:
    folder = make_run(tmp_path / "big", steps=50, groups=2, group_size=20, hostile=False)
    browser.get(build_report(folder.path, max_groups=100).as_uri())
    assert "100 of 100 groups, 2000 of 2000 rollouts" in ask(browser, 'document.querySelector(".count").textContent')
    drawn = ask(browser, 'document.querySelectorAll(".group").length')
    assert drawn <= 40
    started = time.monotonic()
    assert "of 100 groups" in set_filter(browser, "f-query", "red disc")
    assert time.monotonic() - started < 5
    browser.execute_script("window.scrollTo(0, document.body.scrollHeight)")
    until(lambda: ask(browser, 'document.querySelectorAll(".group").length') > drawn)
    assert errors(browser) == []


def test_an_empty_run_says_what_is_missing(browser: Any, tmp_path: Path) -> None:
    browser.get(build_report(tmp_path).as_uri())
    body = ask(browser, "document.body.innerText")
    for said in ("No summary.json yet", "No metrics.jsonl yet", "No rollouts to show"):
        assert said in body
    assert errors(browser) == []


def test_odd_records_do_not_stop_the_page(browser: Any, tmp_path: Path) -> None:
    sizes = {"original_size": [9, 9], "model_size": [9, 9]}
    records: list[dict[str, Any]] = [
        {"completion": "no fields at all"},
        {
            "completion": "",
            "step": 3,
            "group": 1,
            "rewards": {"__proto__": 1, "iou": None},
            "images": [{"path": "x"}],
        },
        {"completion": "a", "step": "x", "group": [1], "images": [{"path": "y", **sizes}]},
    ]
    RunFolder(tmp_path).rollouts.write_text("\n".join(map(json.dumps, records)) + "\n")
    browser.get(build_report(tmp_path).as_uri())
    assert ask(browser, 'document.querySelectorAll(".rollout").length') == 3
    assert "Picture not shown" in ask(browser, "document.body.innerText")
    assert set_filter(browser, "f-low", "0").startswith("0 of 3")
    assert errors(browser) == []


# ---------------------------------------------------------------------- episodes with tools


@pytest.fixture
def tools_page(browser: Any, tmp_path: Path) -> Any:
    browser.get(build_report(make_tool_run(tmp_path / "tools").path).as_uri())
    yield browser
    assert errors(browser) == []


def test_an_episode_shows_who_wrote_what_with_pictures_in_their_places(tools_page: Any) -> None:
    first = 'document.querySelector(".rollout")'
    kinds = ask(tools_page, f'[...{first}.querySelectorAll(".span")].map(s => s.classList[1])')
    assert kinds == ["trained", "inserted", "trained", "inserted", "trained"]
    counts = ask(tools_page, f'[...{first}.querySelectorAll(".who")].map(s => s.textContent)')
    assert counts == ["model · 21", "shown · 40", "model · 18", "shown · 12", "model · 9"]
    assert (
        ask(tools_page, f'{first}.querySelector(".trajectory .legend").textContent')
        == "trained, 48 tokensshown to the model, 52 tokens"
    )
    # The picture stands between the words that were shown around it, in the second stretch.
    order = ask(tools_page, f'[...{first}.querySelectorAll(".span")[1].lastChild.children].map(n => n.tagName)')
    assert order == ["PRE", "FIGURE", "PRE"]
    picture = f'{first}.querySelector(".tool-picture img")'
    ask(tools_page, f"{picture}.scrollIntoView()")
    until(lambda: ask(tools_page, f"{picture}.naturalWidth") == 56)
    assert "img_1 by crop · 40 × 30 px" in ask(tools_page, f'{first}.querySelector(".tool-picture").innerText')
    colours = ask(tools_page, f'[...{first}.querySelectorAll(".span")].map(s => getComputedStyle(s).backgroundColor)')
    assert len(set(colours)) == 2
    assert colours[0] == colours[2] != colours[1]


def test_calls_stand_with_their_turn_and_failures_say_why(tools_page: Any) -> None:
    first = 'document.querySelector(".rollout")'
    calls = ask(tools_page, f'[...{first}.querySelectorAll(".call")].map(c => c.innerText)')
    assert "crop" in calls[0]
    assert "[10, 20, 50, 50]" in calls[0]
    assert "1 picture" in calls[0]
    assert "no such picture" in calls[1]
    assert ask(tools_page, f'{first}.querySelectorAll(".call.failed").length') == 1
    assert "a call failed" in ask(tools_page, f'{first}.querySelector("header").innerText')
    # Hostile arguments and texts of tools are text.
    assert HOSTILE[:9] in ask(tools_page, 'document.querySelectorAll(".rollout")[1].textContent.toWellFormed()')
    assert ask(tools_page, "document.scripts.length") == 2


def test_what_was_cut_off_is_coloured_as_not_trained(tools_page: Any) -> None:
    cut = 'document.querySelectorAll(".rollout")[2]'
    assert ask(tools_page, f'[...{cut}.querySelectorAll(".span")].map(s => s.classList[1])') == [
        "untrained",
        "inserted",
        "untrained",
    ]
    assert "cut off" in ask(tools_page, f'{cut}.querySelector(".trajectory .legend").textContent')
    assert set_filter(tools_page, "f-why", "budget").endswith("1 of 4 rollouts.")
    assert set_filter(tools_page, "f-why", "call").endswith("2 of 4 rollouts.")


def test_colours_follow_what_the_record_says_was_trained(browser: Any, tmp_path: Path) -> None:
    folder = make_tool_run(tmp_path / "told")
    first, second, cut, last = read_rollouts(folder.rollouts)
    first["trained"], cut["trained"] = [21, 3, 5, 0, 0], [21, 0, 3]
    folder.rollouts.write_text("".join(json.dumps(one) + "\n" for one in (first, second, cut, last)))
    browser.get(build_report(folder.path).as_uri())
    rollout = 'document.querySelectorAll(".rollout")'
    told = ask(browser, f'[...{rollout}[0].querySelectorAll(".who")].map(s => s.textContent)')
    assert told == ["model · 21", "shown · 40, 3 trained", "model · 18, 5 trained", "shown · 12", "model · 9"]
    kinds = ask(browser, f'[...{rollout}[0].querySelectorAll(".span")].map(s => s.classList[1])')
    assert kinds == ["trained", "inserted", "trained", "inserted", "untrained"]
    assert "trained, 29 tokens" in ask(browser, f'{rollout}[0].querySelector(".trajectory .legend").textContent')
    kinds = ask(browser, f'[...{rollout}[2].querySelectorAll(".span")].map(s => s.classList[1])')
    assert kinds == ["trained", "inserted", "trained"]
    assert errors(browser) == []


def test_what_tools_said_is_searched(tools_page: Any) -> None:
    assert set_filter(tools_page, "f-query", "there is no picture").endswith("1 of 4 rollouts.")
    assert ask(tools_page, 'document.querySelector(".span.inserted mark").textContent') == "there is no picture"
    assert set_filter(tools_page, "f-query", "no such words").startswith("0 of 1")


def test_an_answer_without_a_call_in_a_run_with_tools(tools_page: Any) -> None:
    last = 'document.querySelectorAll(".rollout")[3]'
    assert ask(tools_page, f'[...{last}.querySelectorAll(".span")].map(s => s.classList[1])') == ["trained"]
    assert ask(tools_page, f'{last}.querySelector(".part-answer").textContent') == "blue"


# ---------------------------------------------------------------------- rewards and alarms


@pytest.fixture(scope="module")
def hacked_run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = make_hacked_run(tmp_path_factory.mktemp("runs") / "hacked")
    build_report(folder.path, max_groups=4)
    return folder


@pytest.fixture
def hacked(browser: Any, hacked_run: RunFolder) -> Any:
    browser.get(hacked_run.report.as_uri())
    yield browser
    assert errors(browser) == []


def test_a_card_for_each_reward_shows_its_values_early_and_late(hacked: Any) -> None:
    names = ask(hacked, '[...document.querySelectorAll(".reward-card h3")].map(h => h.textContent)')
    assert names == ["total", "exact", "length_bonus", "format", "judge"]
    card = '[...document.querySelectorAll(".reward-card")]'
    assert ask(hacked, f'{card}[1].querySelectorAll(".histogram .value").length') == 4  # 0 and 1, early and late
    tips = ask(hacked, f'[...{card}[1].querySelectorAll(".histogram title")].map(t => t.textContent)')
    assert [tip.split(":")[0] for tip in tips] == ["0", "1"]
    assert all("early" in tip and "late" in tip for tip in tips)
    shares = ask(
        hacked,
        f"{card}.map(c => ['early', 'late'].map(p => [...c.querySelectorAll('g > .value.' + p)]"
        ".reduce((sum, r) => sum + parseFloat(r.getAttribute('height')), 0)))",
    )
    assert all(early > 0 and late > 0 for early, late in shares)
    assert "none" in ask(hacked, f'{card}[4].querySelector(".histogram").textContent')
    assert "none" not in ask(hacked, f'{card}[1].querySelector(".histogram").textContent')
    assert ask(hacked, f'{card}[4].querySelector(".chip").textContent') == "not trained on"
    drawn = 'document.querySelectorAll("#rewards svg *").values().every(n => ![...n.attributes].some(a => /NaN|undef/.test(a.value)))'
    assert ask(hacked, drawn)


def test_failed_calls_are_told_by_kind_with_the_first_error(hacked: Any) -> None:
    judge = 'document.querySelectorAll(".reward-card")[4]'
    assert "deadline" in ask(hacked, f"{judge}.textContent")
    assert "failed 3.1 %" in ask(hacked, f'{judge}.querySelector(".stats").textContent')
    hacked.execute_script(f'{judge}.querySelector("details").open = true')
    assert HOSTILE[:40] in ask(hacked, f'{judge}.querySelector(".error").textContent')
    assert "No call has failed" in ask(hacked, 'document.querySelectorAll(".reward-card")[1].textContent')
    assert ask(hacked, "document.scripts.length") == 2


def test_the_correlations_switch_between_groups_and_the_whole_run(hacked: Any) -> None:
    cell = "document.querySelector('.matrix tbody tr:last-child td:nth-child(4)')"  # length_bonus and completion length
    within = ask(hacked, f"{cell}.textContent")
    assert float(within.split("n")[0].replace("−", "-")) > 0.8
    assert ask(hacked, f"{cell}.classList.contains('along')")
    assert ask(hacked, f"getComputedStyle({cell}).backgroundColor") != "rgba(0, 0, 0, 0)"
    still = "document.querySelectorAll('.matrix td.still')"
    assert ask(hacked, f"{still}.length") == 5, "a reward that never varies goes with nothing"
    hacked.find_elements("css selector", ".toggle button")[1].click()
    assert ask(hacked, f"{cell}.textContent") != within
    assert ask(hacked, "document.querySelector('.toggle [aria-pressed=true]').textContent") == "over all completions"


def test_the_alarm_stands_on_the_page_and_in_the_curves(hacked: Any) -> None:
    alarms = ask(hacked, '[...document.querySelectorAll(".alarms li")].map(a => a.innerText)')
    assert any("score up, correct down" in text.lower() and "length_bonus" in text for text in alarms)
    marks = ask(hacked, '[...document.querySelectorAll(".mark title")].map(t => t.textContent)')
    assert len(marks) == 3
    assert all("score up" in text for text in marks)


def test_the_page_fits_a_phone(hacked: Any) -> None:
    hacked.set_window_size(500, 900)
    try:
        assert ask(hacked, "document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    finally:
        hacked.set_window_size(1300, 1000)
