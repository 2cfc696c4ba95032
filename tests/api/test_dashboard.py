"""The dashboard as people use it: a real browser before a real service."""

import json

import pytest

from detkds_api.settings import Settings
from detkds_core.policy import readable
from detkds_core.store import jobs, results
from detkds_core.store import searches as stored

from .conftest import KEY, free_port, running

NAME = '<img src=x onerror="document.title=\'owned\'"> & "ü" 検索 😀'
LONG = "x" * 100
WORDS = "document.getElementById('main').innerText"


def cells(browser, place=0):
    """The rows of a table of the page, each a list of its cells' text."""
    rows = f"[...document.querySelectorAll('main table')[{place}].tBodies[0].rows]"
    return browser.run(f"{rows}.map(row => [...row.cells].map(cell => cell.innerText.trim()))")


def names(browser):
    return browser.run("[...document.querySelectorAll('main .name')].map(one => one.innerText)")


@pytest.fixture
def see(service, browser):
    """Go to a page of the dashboard and wait for a text on it."""

    def go(path, text):
        browser.go(f"{service.url}/#{path}")
        browser.until(f"{WORDS}.includes({json.dumps(text)})")
        return browser

    return go


def made(service, wanted, **changes):
    answer = service.http.post("/searches", json={**wanted, **changes})
    assert answer.status_code == 202, answer.text
    return answer.json()


def test_a_name_is_shown_as_it_was_written_and_never_run(service, wanted, see):
    one = made(service, wanted, name=NAME, notes="<b>bold</b>\nsecond line", tags=["<i>"])
    for path in ("/searches", f"/searches/{one['id']}"):
        browser = see(path, NAME)
        assert "<b>bold</b>" in browser.text
        assert "<i>" in browser.text
        assert browser.run("document.querySelectorAll('main img, main b, main i').length") == 0
    assert browser.run("document.title") == f"{NAME} · DetKDS"
    assert browser.run("document.querySelector('.note').innerText") == "<b>bold</b>\nsecond line"


def test_a_list_is_narrowed_by_name_tag_and_state_and_the_address_keeps_it(service, wanted, see):
    made(service, wanted, name="alpha one", tags=["a tag & more"])
    second = made(service, wanted, name="Alpha two", tags=["a tag & more"])
    made(service, wanted, name="beta", tags=["a tag & more"])
    service.http.post(f"/searches/{second['id']}/cancel")
    browser = see("/searches", "Filter")
    browser.write("#by-tag", "a tag & more")
    browser.press("Enter")
    browser.until("document.querySelectorAll('main .name').length === 3")
    assert names(browser) == ["beta", "Alpha two", "alpha one"]
    browser.write("#by-name", "ALPHA")
    browser.press("Enter")
    browser.until("document.querySelectorAll('main .name').length === 2")
    browser.run(
        "document.querySelector('#by-state').value = 'CANCELLED'; document.querySelector('#by-state').dispatchEvent(new Event('change')); 0"
    )
    browser.until("document.querySelectorAll('main .name').length === 1")
    assert names(browser) == ["Alpha two"]
    address = browser.run("location.hash")
    assert address == "#/searches?name=ALPHA&tag=a+tag+%26+more&state=CANCELLED"
    assert names(see(address[1:], "Alpha two")) == ["Alpha two"], "somebody else opens the same"
    assert browser.run("document.querySelector('#by-state').value") == "CANCELLED"
    see("/searches?tag=nobody+has+it", "Nothing is as the filters ask.")
    see("/searches?state=LOST", "?state")


def test_a_long_list_goes_on_page_by_page(service, wanted, see):
    for number in range(51):
        made(service, wanted, name=f"page {number}", tags=["long"])
    browser = see("/searches?tag=long", "Next page")
    assert names(browser)[0] == "page 50"
    browser.run("[...document.querySelectorAll('main a')].find(one => one.innerText === 'Next page').click()")
    browser.until(f"{WORDS}.includes('First page')")
    assert names(browser) == ["page 0"]


def test_a_tag_leads_to_whatever_else_has_it(service, wanted, see):
    first = made(service, wanted, name="first with", tags=["together"])
    made(service, wanted, name="second with", tags=["together"])
    browser = see(f"/searches/{first['id']}", "first with")
    browser.click("main .tag")
    browser.until("document.querySelectorAll('main .name').length === 2")
    assert names(browser) == ["second with", "first with"]


@pytest.mark.parametrize("kind", ["searches", "distill"])
def test_name_tags_and_notes_are_changed_on_the_page(service, wanted, see, kind):
    body = wanted if kind == "searches" else {name: wanted[name] for name in ("dataset", "teacher", "student")} | {"policy": "pkd"}
    one = service.http.post(f"/{kind}", json={**body, "name": f"before {kind}", "notes": "old", "tags": ["a"]}).json()
    here = f"/{kind}/{one['id']}"
    browser = see(here.replace("distill", "distillations"), f"before {kind}")
    browser.click("#edit")
    browser.until("document.querySelector('#edit-notes')?.value === 'old'")
    assert browser.run("document.activeElement.id") == "edit-name"
    browser.write("#edit-name", "after")
    browser.write("#edit-tags", "b, c d ,")
    browser.write("#edit-notes", "what it was for")
    browser.click("#save")
    browser.until(f"!document.querySelector('#save') && {WORDS}.includes('what it was for')")
    changed = service.http.get(here).json()
    assert (changed["name"], changed["tags"], changed["notes"]) == ("after", ["b", "c d"], "what it was for")
    browser.click("#edit")
    browser.until("document.querySelector('#edit-tags')")
    browser.write("#edit-tags", "b, b")
    browser.click("#save")
    browser.until(f"{WORDS}.includes(\"'b' appears twice\")")
    assert browser.run("document.querySelector('#edit-tags').value") == "b, b", "what was written stays"
    browser.press("Escape")
    browser.until("!document.querySelector('#save')")
    assert service.http.get(here).json()["tags"] == ["b", "c d"]


def test_results_are_chosen_and_compared_those_of_other_images_apart(of_search, of_distillation, see):
    first, second, elsewhere = of_search(title="one to compare"), of_distillation(), of_search("e" * 20, title="elsewhere")
    browser = see("/results", "elsewhere")
    for one in (first, second, elsewhere):
        browser.click(f"#choose-{one}")
        browser.until(f"document.querySelector('#choose-{one}').hasAttribute('checked')")
    browser.click("#compare")
    browser.until(f"{WORDS}.includes('Apart')")
    assert [[row[:4] for row in cells(browser, place)] for place in (0, 1)] == [
        [["one to compare", "30.3", "28.5 to 32.0", "1, 2, 3"], ["trained", "21.0", "–", "4"]],
        [["elsewhere", "30.3", "28.5 to 32.0", "1, 2, 3"]],
    ]
    assert cells(browser, 0)[0][6] == "4,000 (trunks 120)"
    assert "shapes (digest dddddddddddd), 300 report images" in browser.text
    assert "Apart: measured on shapes (digest eeeeeeeeeeee), the first group on shapes (digest dddddddddddd)" in browser.text
    browser = see("/results", "Choose none")
    browser.click("#choose-none")
    browser.until(f"{WORDS}.includes('Choose two or more')")
    see("/compare", "Choose 2 to 20 results to compare.")


def test_who_uses_the_keyboard_stays_where_they_are(of_search, see):
    one = of_search()
    browser = see("/results", "Choose two")
    browser.run(f"document.querySelector('#choose-{one}').focus()")
    browser.press(" ")
    browser.until(f"{WORDS}.includes('1 is chosen')")
    assert browser.run("document.activeElement.id") == f"choose-{one}"
    browser.press("Tab")
    assert browser.run("document.activeElement.getAttribute('href')") == f"#/results/{one}"
    assert browser.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_a_result_says_what_its_figures_rest_on_and_how_far_its_gates_can_be_trusted(service, of_search, see):
    funnel = {"proposed": 9, "rejected": {"descent": 5}, "duplicates": 1, "infeasible": 0, "trained": [3, 1]}
    audit = {"audited": 4, "falsely_rejected": 1, "false_reject_rate": 0.25, "false_reject_interval": [0.0456, 0.6994]}
    rungs = [{"iterations": 15}, {"iterations": 1200}]
    one = of_search(summary={"funnel": {**funnel, **audit}, "rungs": rungs})
    browser = see(f"/results/{one}", "What became of the candidates")
    assert "30.3 mean of seeds 1, 2, 3 on 300 report images; 95 % interval 28.5 to 32.0" in browser.text
    assert cells(browser) == [
        ["proposed", "9"],
        ["refused by descent", "5"],
        ["doubles", "1"],
        ["infeasible", "0"],
        ["trained for 15 iterations", "3"],
        ["trained for 1,200 iterations", "1"],
        [
            "false-reject rate of the gates",
            "25 % (95 % interval 5 to 70 %): 1 of 4 that were refused and trained all the same is among the best third",
        ],
    ]
    unknown = {"audited": 0, "falsely_rejected": 0, "false_reject_rate": None, "false_reject_interval": None}
    other = of_search(summary={"funnel": {**funnel, **unknown}, "rungs": rungs})
    browser = see(f"/results/{other}", "not known: none was audited")
    assert "The gates" not in browser.text, "searches of before did not tell them apart"
    gates = {"duplicate": {"refused": 1, **unknown, "seconds": 0.002}, "descent": {"refused": 1205, **audit, "seconds": 12.4}}
    newer = of_search(summary={"funnel": {**funnel, **audit, "gates": gates, "look_seconds": 20.0}, "rungs": rungs})
    rate = "1: 25 % (5 to 70 %)"
    assert cells(see(f"/results/{newer}", "The gates"), 1) == [
        ["duplicate", "1", "0", "–", "< 0.01"],
        ["descent", "1,205", "4", rate, "12"],
        ["the look itself", "", "", "", "7.60"],
        ["all", "1,206", "4", rate, "20"],
    ]
    silent = {gate: {**one, "seconds": None} for gate, one in gates.items()}
    unmeasured = of_search(summary={"funnel": {**funnel, **audit, "gates": silent, "look_seconds": None}, "rungs": rungs})
    lines = cells(see(f"/results/{unmeasured}", "The gates"), 1)
    assert [line[0] for line in lines] == ["duplicate", "descent", "all"]
    assert [line[-1] for line in lines] == ["–"] * 3


def test_a_formula_has_four_digits_here_as_on_the_command_line(service, of_search, see):
    exact = "0.7421037228031555·l2(standardize(global))"
    weight = {"knowledge": "global", "transforms": ["none", "none", "standardize"], "distance": "l2", "weight": 0.7421037228031555}
    browser = see(f"/results/{of_search(policy={'terms': [weight]})}", "0.7421·l2(standardize(global))")
    assert exact not in browser.text
    assert browser.run("document.querySelector('main .formula').title") == exact
    texts = [
        exact,
        "12345.678·l2(scale_r2(global)) + 5e-05·fgd[alpha=0.00012345, beta=1e-07]",
        "13.30719·kl[T=2, warm_up=12500](logits)",
        "1.23456e-05·l1(fgbg)",
        "none",
    ]
    shown = browser.run(f"import('/pages/dom.js').then(dom => {json.dumps(texts)}.map(dom.readable))")
    assert shown == list(map(readable, texts))


def test_a_search_counts_its_candidates_as_the_ledger_does(service, wanted, see):
    one = made(service, wanted, name="counted")
    term = {"knowledge": "global", "transforms": ["none", "none", "standardize"], "distance": "l2"}
    with service.store.begin() as session:
        proposals = [
            {
                "index": n,
                "stage": "stage1",
                "island": "global",
                "operator": "seed",
                "parents": [],
                "policy": {"terms": [{**term, "weight": n + 1.0}]},
            }
            for n in range(5)
        ]
        stored.propose(session, one["id"], proposals, [f"counted {n}" for n in range(5)])
        job = jobs.enqueue(session, kind="evaluate", spec={}, search_id=one["id"])
        stored.try_out(session, one["id"], 0, [0, 1, 2, 3], rung=15, replicate=0, seed=3, job_id=job.id)
        rows = [
            {"ap": 12.25, "iterations": 15},
            {"rejected": {"gate": "descent", "detail": "its loss <rises>"}},
            {"rejected": {"gate": "duplicate", "detail": "its gradient"}, "same_as": 0},
            {"failure": {"kind": "not_finite", "detail": "the loss is nan"}},
        ]
        for index, row in enumerate(rows):
            stored.measure(session, one["id"], 0, index, row)
    browser = see(f"/searches/{one['id']}", "Refused, doubles and infeasible")
    assert "5 1 measured, 1 refused, 1 double, 1 infeasible, 1 not measured yet" in browser.text
    assert [row[:2] for row in cells(browser, 1)] == [
        ["1", "refused by descent: its loss <rises>"],
        ["2", "a double of 0"],
        ["3", "infeasible: the loss is nan"],
    ]
    assert cells(browser, 0)[0][:3] == ["0", "15", "12.3"]


def test_a_run_says_where_its_recipe_is_from_and_what_is_to_be_said_of_it(service, wanted, see):
    one = made(service, wanted, name="planned", recipe={**wanted["recipe"], "image_size": 800})
    (warning,) = one["spec"]["warnings"]
    browser = see(f"/searches/{one['id']}", warning)
    origin = one["spec"]["recipe_from"]
    assert f"Recipe: from {origin['base']}, but for your {', '.join(origin['given'])}." in browser.text
    whole = made(service, wanted, name="whole", recipe={**one["spec"]["recipe"], "image_size": 64})
    browser = see(f"/searches/{whole['id']}", "Recipe: given whole.")
    assert browser.run("document.querySelectorAll('main .problem').length") == 0
    with service.store.begin() as session:  # the result says it, once there is one
        search = stored.get(session, one["id"])
        results.create(session, search, policy={"terms": []}, ap=1.0, metrics={}, evidence={}, artifacts={}, environment={})
        for move in (stored.start, stored.confirm, stored.succeed):
            move(session, search)
    browser = see(f"/searches/{one['id']}", "Its result")
    assert browser.run("document.querySelectorAll('main .problem').length") == 0


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("/nowhere", "There is no page #/nowhere"),
        ("/results/none/more", "There is no page"),
        ("/constructor", "There is no page"),
        ("/searches/none", "there is no search none"),
        ("/distillations/%00", "there is no distillation"),
        ("/results/<b>", "there is no result"),
        ("/compare?ids=one,two", "there is no result one, two"),
    ],
)
def test_a_wrong_address_says_so_and_leads_back(see, path, text):
    browser = see(path, text)
    assert browser.run("document.querySelector('main a').getAttribute('href')") == "#/"
    assert "the service answers" in browser.text


def test_a_cancelled_and_a_failed_search_say_how_they_ended(service, wanted, see):
    one, other = made(service, wanted, name="to cancel"), made(service, wanted, name="to fail")
    with service.store.begin() as session:
        stored.fail(session, other["id"], "no searched candidate could be trained; <why>")
    assert "failed" in see(f"/searches/{other['id']}", "no searched candidate could be trained; <why>").text
    browser = see(f"/searches/{one['id']}", "Cancel this search")
    browser.run("window.confirm = () => true; 0")
    browser.click("#cancel")
    browser.until("document.querySelector('.state').innerText === 'cancelled'")
    assert service.http.get(f"/searches/{one['id']}").json()["state"] == "CANCELLED"
    assert not browser.run("!!document.querySelector('#cancel, #pause')")


def test_with_nothing_there_it_says_how_to_start(browser, tmp_path):
    with running(Settings(home=tmp_path, port=free_port())) as url:
        browser.go(url)
        browser.until(f"{WORDS}.includes('Nothing has been searched yet')")
        assert "detkds search --pair digits_gfl" in browser.text
        for path in ("searches", "distillations", "results"):
            browser.go(f"{url}/#/{path}")
            browser.until(f"{WORDS}.includes('None yet.')")
    browser.run("dispatchEvent(new Event('again'))")
    browser.until("document.getElementById('service').innerText === 'the service does not answer; trying again'")
    assert "None yet." in browser.text, "what was there stays"


def test_a_key_is_asked_for_and_kept(locked, browser):
    browser.go(f"{locked}/#/results")
    browser.until("document.activeElement.id === 'key'")
    browser.call("Input.insertText", text=KEY.get_secret_value())
    browser.press("Enter")
    browser.until(f"{WORDS}.includes('None yet.')")


@pytest.mark.parametrize("width", [400, 1300])
def test_no_page_is_wider_than_the_screen(service, wanted, of_search, see, width):
    search = made(service, wanted, name=LONG, tags=["y" * 40], notes="z" * 400)
    result = of_search(title=LONG, name="shapes", insight={"effects": [], "rung": 1, "measured": 1})
    browser = see("/", LONG)
    browser.size(width, 900)
    paths = (
        "/",
        "/searches",
        "/distillations",
        "/results",
        f"/searches/{search['id']}",
        f"/results/{result}",
        "/start",
        f"/compare?ids={result},{of_search()}",
    )
    for path in paths:
        browser.go(f"{service.url}/#{path}")
        browser.until("document.getElementById('service').className === 'service up' && document.querySelectorAll('main > *').length > 1")
        assert browser.run("document.documentElement.scrollWidth") <= width, path
