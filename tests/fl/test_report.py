import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from fl.errors import RunError
from fl.report import write_report
from privacy.accounting.gaussian import as_text

VOID = {"meta", "br", "hr", "img", "input", "link"}


class Page(HTMLParser):
    """Tags, ids, text and the element stack of a page; unbalanced tags fail at once."""

    def __init__(self, html):
        super().__init__()
        self.stack, self.tags, self.attributes, self.texts = [], [], [], []
        self.feed(html)
        self.close()
        assert self.stack == []

    def handle_starttag(self, tag, attrs):
        """Opens an element."""
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        """Notes an element without content."""
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        """Closes the innermost element, which must be this one."""
        assert self.stack.pop() == tag

    def handle_data(self, data):
        """Collects visible text."""
        if self.stack[-1:] != ["style"]:
            self.texts.append(data)

    @property
    def text(self):
        """Visible text, white space collapsed."""
        return " ".join(" ".join(self.texts).split())


def html_of(run):
    """Writes the report and reads it back."""
    return write_report(run).read_text(encoding="utf-8")


def change(path, **fields):
    """Replaces fields of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | fields), encoding="utf-8")


def test_shows_results_beside_baselines(make_run):
    """Headline, baselines and every site are there, the baselines marked, a missing AUC as a dash."""
    run = make_run()
    assert write_report(run) == run / "report.html"
    text = Page(html_of(run)).text
    assert "4 sites trained one model in 20 rounds" in text
    assert "Federated, without privacy 0.902 +0.004 0.827 +0.002 0.845 +0.001" in text
    assert "Each site alone, without privacy 0.861 \N{MINUS SIGN}0.037" in text
    assert "simulation only, not covered by ε" in text
    assert "switzerland 0.652 0.920 23 2 18 of 20 rounds" in text
    assert "va_long_beach \N{EN DASH} 0.750 40 0 20 of 20 rounds" in text


def test_states_the_promise_and_what_it_leaves_out(make_run):
    """Unit, relation, δ, trust model, slack, bound and gaps are in words; the page never claims to be private."""
    run = make_run()
    epsilon = json.loads((run / "result.json").read_text(encoding="utf-8"))["epsilon"]
    text = Page(html_of(run)).text
    for words in (
        f"ε ≤ {as_text(epsilon, 4)} (proved), at δ = 0.0001",
        "one row of a site's training data",
        "add-remove",
        "against the server and 1 colluding site;",
        "up to 1 of 4 sites dropping out",
        "budget of the run 1.000",
        "20 rounds committed, 1 reserved and not committed",
        "Not covered by this ε",
        "The baselines: they were trained by full-batch gradient descent without noise",
    ):
        assert words in text
    assert not re.search(r"\bprivate\b", text, re.IGNORECASE)


def test_translates_epsilon_into_risk(make_run):
    """At ε = ln 2 the odds double and a 1 % false alarm rate finds 2 %, and δ on top; both are rounded up."""
    run = make_run()
    change(run / "result.json", epsilon=0.6931471805599453)
    text = Page(html_of(run)).text
    assert "by a factor of 2 at most" in text
    assert "finds at most 2.01 %" in text


def test_warns_of_a_weak_delta(make_run):
    """A δ that is not below one over the public number of records is called weak on the page."""
    run = make_run()
    assert "This δ is weak" not in html_of(run)
    change(run / "plan.json", delta=1e-3)
    assert "This δ is weak" in html_of(run)


def test_prints_what_the_data_sets_have_spent_in_all_runs(make_run):
    """Where the result has lifetime totals, each site's is printed."""
    run = make_run()
    assert "all runs" not in html_of(run)
    change(run / "result.json", epsilon_lifetime={"hungary": 1.234})
    assert "hungary, all runs ε ≤ 1.234 over every run booked on this data set" in Page(html_of(run)).text


@pytest.mark.parametrize(
    ("private", "protected", "reason"),
    [
        (True, True, None),
        (False, True, "The protocol was left out"),
        (False, False, "added no noise"),
        (True, False, "no noise"),
    ],
)
def test_stamp(make_run, private, protected, reason):
    """A run under a test seed, and one without noise, are stamped NOT PRIVATE with the reason; no other is."""
    html = html_of(make_run(private=private, protected=protected))
    assert ('<div class="stamp"' in html) == (reason is not None)
    assert ("NOT PRIVATE" in html) == (reason is not None)
    assert ("(proved)" in html) == (reason is None)
    if reason is not None:
        assert reason in html


def test_a_test_seed_is_the_reason_where_it_was_one(make_run):
    """The stamp and every ε name the test seed, and not a missing protocol."""
    run = make_run(private=False)
    change(run / "result.json", insecure_test_seed=True)
    html = html_of(run)
    assert "A test seed fixed" in html
    assert "(void: test seed)" in html
    assert "protocol was left out" not in html


def test_masked_vectors_are_claimed_of_the_protocol_only(make_run):
    """A run in mode ideal does not say that the server was sent masked vectors."""
    run = make_run(private=False)
    assert "sent masked vectors" in html_of(run)
    config = run / "config.toml"
    config.write_text(config.read_text() + '[secagg]\nmode = "ideal"\n')
    html = html_of(run)
    assert "sent masked vectors" not in html
    assert "(mode ideal)" in html


def test_no_bound_is_said_where_there_is_none(make_run):
    """A route or a data set without a finite ε is a gap in the chart and words in the table, not an error."""
    run = make_run()
    change(run / "result.json", epsilon_lifetime={"hungary": None})
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    lines[3]["epsilon"]["rdp"] = None
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "hungary, all runs no bound over all booked runs" in Page(html_of(run)).text


def test_timeline_tells_who_was_in_the_sum(make_run):
    """Each silence has its phase; one after the vector was sent is in the sum, one before is not."""
    html = html_of(make_run())
    cells = re.findall(r'<td class="(\w*)" title="round (\d+): ([^"]*)">(\w?)</td>', html)
    assert len(cells) == 4 * 20
    assert [cell for cell in cells if cell[3]] == [
        ("out", "5", "not in the sum, silent from share", "S"),
        ("out", "10", "not in the sum, silent from mask", "M"),
        ("late", "15", "in the sum, silent from confirm", "C"),
        ("late", "20", "in the sum, silent from unmask", "U"),
    ]
    assert all(cell[0] == "" and cell[2] == "in the sum" for cell in cells if not cell[3])


def test_adds_up_bytes_and_seconds(make_run):
    """Phases are summed over rounds; time outside of the phases has its own line."""
    text = Page(html_of(make_run())).text
    assert "mask 60.0 kB 120.0 kB 0.06 0.12" in text
    assert "all 300.0 kB 600.0 kB 0.30 0.60" in text
    assert "Elsewhere: training 1.25 s." in text


def test_lists_configuration_and_plan(make_run):
    """Every key of the configuration and of the plan is in the settings."""
    text = Page(html_of(make_run())).text
    assert "algorithm.name dp_fedsgd" in text
    assert "privacy.delta 0.0001" in text
    assert "plan: records_per_site 303" in text
    assert re.search(r"plan: hash [0-9a-f]{64} ", text)


def test_is_one_file_that_asks_the_network_for_nothing(make_run):
    """No script, no element that loads, no address outside of namespace declarations, no duplicate id."""
    html = html_of(make_run())
    page = Page(html)
    assert {"script", "link", "img", "iframe", "object", "embed", "base", "form"}.isdisjoint(page.tags)
    addresses = [(name, value) for name, value in page.attributes if "//" in (value or "")]
    assert {name for name, _ in addresses} <= {"xmlns", "xmlns:xlink"}
    assert re.findall(r"@import|@font-face", html) == []
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", html))
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    references = re.findall(r'url\(#([^)]*)\)|href="#([^"]*)"', html)
    assert {first or second for first, second in references} <= set(ids)


def test_fits_phones_and_follows_dark_mode(make_run):
    """The page declares its viewport, and charts take the page's text colour."""
    html = html_of(make_run())
    assert 'name="viewport"' in html
    assert "prefers-color-scheme: dark" in html
    assert "@media print" in html
    assert "currentColor" in html
    assert "#010203" not in html


def test_charts_follow_what_the_run_has(make_run):
    """Three charts; without an evaluation two; without noise and evaluation none."""
    run = make_run()
    assert html_of(run).count("<svg") == 3
    (run / "evaluation.jsonl").unlink()
    assert html_of(run).count("<svg") == 2


def test_a_run_without_noise_needs_no_plan(make_run):
    """Without ε there is no plan and no ledger to read, and no promise is printed."""
    run = make_run(protected=False)
    assert not (run / "plan.json").exists()
    html = html_of(run)
    assert html.count("<svg") == 1
    assert "(proved)" not in html
    assert "None" not in Page(html).text


def test_a_run_without_a_protocol_has_no_traffic(make_run):
    """Plain aggregation reports neither bytes nor seconds; the page says zero."""
    run = make_run(protected=False)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    bare = [json.dumps(line | {"seconds": {}, "bytes": {}}) for line in lines]
    (run / "metrics.jsonl").write_text("\n".join(bare), encoding="utf-8")
    assert "all 0 B 0 B 0.00 0.00" in Page(html_of(run)).text


def test_a_run_of_nothing_committed(make_run):
    """A run that committed no round has a report."""
    run = make_run()
    change(run / "result.json", rounds=0, epsilon=0.0)
    (run / "metrics.jsonl").write_text("", encoding="utf-8")
    assert "in 0 rounds" in html_of(run)


def test_same_folder_same_bytes(make_run):
    """Writing twice gives the same bytes and leaves no other file behind."""
    run = make_run()
    before = {path.name for path in run.iterdir()}
    first = write_report(run).read_bytes()
    assert write_report(run).read_bytes() == first
    assert {path.name for path in run.iterdir()} == before | {"report.html"}


def test_escapes_what_the_run_folder_says(make_run):
    """Names and settings cannot become markup."""
    run = make_run()
    attack = "<script>alert(1)</script>"
    (run / "config.toml").write_text(f'name = "{attack}"\n', encoding="utf-8")
    site = {"auc": 0.5, "accuracy": 0.5, "positives": 1, "negatives": 1}
    change(run / "result.json", sites={attack: site})
    page = Page(html_of(run))
    assert "script" not in page.tags
    assert page.text.count(attack) == 3


@pytest.mark.parametrize("name", ["config.toml", "result.json", "plan.json", "metrics.jsonl", "ledger.jsonl"])
def test_refuses_a_missing_file_by_name(make_run, name):
    """Each file that the report needs is named when it is not there, and nothing is written."""
    run = make_run()
    (run / name).unlink()
    with pytest.raises(RunError, match=rf"{re.escape(str(run / name))}: cannot be read"):
        write_report(run)
    assert not (run / "report.html").exists()


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("config.toml", "not TOML"),
        ("result.json", ""),
        ("plan.json", ""),
        ("metrics.jsonl", "line 20"),
        ("evaluation.jsonl", "line 20"),
        ("ledger.jsonl", "line 41"),
    ],
)
def test_refuses_a_torn_file_and_keeps_the_earlier_report(make_run, name, place):
    """A file that ends in the middle is named with its line; the report of before stays."""
    run = make_run()
    earlier = write_report(run).read_bytes()
    content = (run / name).read_bytes()
    (run / name).write_bytes(content[: -8 if name != "config.toml" else -2] + (b"[" if name == "config.toml" else b""))
    with pytest.raises(RunError, match=rf"{re.escape(str(run / name))}: {place}"):
        write_report(run)
    assert (run / "report.html").read_bytes() == earlier


def test_refuses_fewer_rounds_than_the_result_says(make_run):
    """Lost whole lines are noticed."""
    run = make_run()
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(lines[:-1]), encoding="utf-8")
    with pytest.raises(RunError, match=r"metrics\.jsonl: has 19 rounds, result\.json says 20"):
        write_report(run)


@pytest.mark.parametrize(
    ("name", "fields", "named"),
    [
        ("result.json", {"auc": "high"}, r"result\.json: .*\$\.auc"),
        ("result.json", {"private": None}, r"result\.json: .*\$\.private"),
        ("plan.json", {"unit": "galaxy"}, r"plan\.json: "),
    ],
)
def test_refuses_a_wrong_value_by_key(make_run, name, fields, named):
    """A value of the wrong kind is refused with file and key."""
    run = make_run()
    change(run / name, **fields)
    with pytest.raises(RunError, match=named):
        write_report(run)


@pytest.mark.parametrize("field", ["epsilon", "sigma_eff"])
def test_refuses_a_round_without_epsilon_in_a_run_with_noise(make_run, field):
    """A round whose ε or noise is not known cannot be hidden among the others."""
    run = make_run()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    lines[6][field] = None
    (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    with pytest.raises(RunError, match="round 7 has no epsilon or sigma_eff"):
        write_report(run)


def test_a_failed_write_leaves_no_half_report(make_run, monkeypatch):
    """When the disk refuses, the error names the report, and no partial file stays."""
    run = make_run()
    before = {path.name for path in run.iterdir()}

    def refuse(_source, _target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(RunError, match=r"report\.html: cannot be written: No space left on device"):
        write_report(run)
    assert {path.name for path in run.iterdir()} == before


def test_no_printed_bound_is_below_the_proved_one(make_run):
    """Every ε of the page, and what is said of it in words, is rounded up where rounding to nearest would go down."""
    run = make_run()
    change(run / "result.json", epsilon=0.70001, epsilon_planned=0.80004, epsilon_lifetime={"hungary": 12.3400001})
    text = Page(html_of(run)).text
    printed = [float(value) for value in re.findall(r"ε (?:≤|=) (\d+(?:\.\d+)?)", text)]
    assert set(printed) == {0.7001, 0.8001, 12.35}
    assert "by a factor of 2.02 at most" in text  # exp(0.70001) is 2.01377
    assert "finds at most 2.03 %" in text  # 2.0138 % and δ


def test_the_clip_norm_has_a_chart_where_it_adapts(make_run):
    """The page draws the clip norm of each round and the part within it; the file stays one, without repeated ids."""
    run = make_run()
    plan = json.loads((run / "plan.json").read_text(encoding="utf-8"))
    adaptive = {
        "quantile": 0.5,
        "learning_rate": 0.2,
        "bit_noise": 40.0,
        "expected": 720.0,
        "min_clip": 0.1,
        "max_clip": 9.0,
    }
    change(run / "plan.json", adaptive=adaptive, epsilon=plan["epsilon"] * 1.01)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    for number, line in enumerate(lines):
        line |= {"clip": 1.0 + 0.1 * number, "within": 0.5}
    (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    html = html_of(run)
    page = Page(html)
    assert html.count("<svg") == 4
    for words in ("clip norm C", "part within C, with its noise", "quantile asked for", "plan: adaptive.quantile 0.5"):
        assert words in page.text
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert "None" not in page.text


def test_a_person_at_several_sites_is_the_unit_where_the_plan_says_so(make_run):
    """With two silos unit, relation and what is not covered speak of persons, and of more sites than two."""
    run = make_run()
    change(run / "plan.json", silos=2)
    text = Page(html_of(run)).text
    for words in (
        "for each person",
        "one person, with one row of the training data at each of at most 2 sites",
        "add-remove: with all rows of the person or without them",
        "a person whose data is at more than 2 sites, or in several rows of one",
    ):
        assert words in text
