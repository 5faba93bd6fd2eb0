"Every verdict has its question, whose five sentences say what it is worth; people meet them with it."
import ast
import re
from pathlib import Path

import pytest
import workbench
from workbench.core.checks.check import check, every_question
from workbench.core.checks.result import Check, Question, as_row
from workbench.core.stages.stages import complete
from workbench.files import write_json
from workbench.lab.cli import main
from workbench.lab.flowchart.cards import checked
from workbench.lab.run.results import checks
from workbench.lab.verdicts import verdict_rows

home = Path(workbench.__file__).parent
FIELDS = ("asks", "fault", "otherwise", "look", "blind")


def strings(node):
    "The texts that an expression may be: a constant, or an f-string with its values as a pattern."
    if isinstance(node, ast.Constant):
        return [str(node.value)]
    if isinstance(node, ast.JoinedStr):
        return ["".join(str(p.value) if isinstance(p, ast.Constant) else ".+" for p in node.values)]
    return []


def names_given(path):
    "Names of checks that a module gives: written in `Check(…)`, or in the variable that stands there."
    found = set()
    for function in ast.walk(ast.parse(path.read_text())):
        if not isinstance(function, ast.FunctionDef):
            continue
        values = {}
        for node in ast.walk(function):
            if isinstance(node, ast.Assign):
                pairs = [(node.targets[0], node.value)]
                if isinstance(node.value, ast.Tuple) and isinstance(node.targets[0], ast.Tuple):
                    pairs = zip(node.targets[0].elts, node.value.elts)
                for target, value in pairs:
                    values.setdefault(getattr(target, "id", ""), []).extend(strings(value))
        for node in ast.walk(function):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Check" and node.args:
                first = node.args[0]
                found.update(strings(first) or values.get(getattr(first, "id", ""), []))
    return found


GIVEN = sorted(set().union(*(names_given(p) for room in ("checks", "train")
                             for p in (home / "core" / room).glob("*.py"))))


@pytest.mark.parametrize("name", GIVEN)
def test_every_verdict_has_a_question(name):
    assert any(re.fullmatch(name, asked) for asked in every_question()), name


def test_every_question_is_given():
    assert len(GIVEN) > 25
    unasked = [n for n in every_question() if not any(re.fullmatch(g, n) for g in GIVEN)]
    assert not unasked, unasked


@pytest.mark.parametrize("name", every_question())
def test_the_five_sentences_of_a_question(name):
    question = every_question()[name]
    for field in FIELDS:
        says = getattr(question, field)
        assert says == says.strip() and says.endswith("?" if field == "asks" else "."), (field, says)
        first = says.lstrip("`")
        assert says.startswith("`") or first[0].isupper() or first.split()[0].rstrip(";,") in (
            "bfloat16", "4-bit"), (field, says)
        assert len(says) <= 200, (field, len(says))


def test_each_room_asks_for_itself():
    "A name that two rooms give has one question."
    rooms = {p.stem: __import__(f"workbench.core.checks.{p.stem}", fromlist=["asks"])
             for p in (home / "core/checks").glob("*.py") if p.stem != "__init__"}
    of = {}
    for room in (r for r in rooms.values() if hasattr(r, "asks")):
        for name, question in room.asks.items():
            assert of.setdefault(name, question) is question, name
    assert {*of} == {*every_question()}


def test_passed_says_what_would_have_been_seen_and_all_else_where_to_look():
    question = Question("Is it?", "A fault.", "Another number.", "The loss.", "Time.")
    rows = [as_row(Check("it", state, "1."), {"it": question})["advice"]
            for state in ("passed", "warned", "failed", "not proven")]
    assert rows == ["Seen otherwise: Another number.", *["Look first at: The loss."] * 3]
    assert as_row(Check("else", "failed", "1."), {"it": question})["advice"] == ""


def test_command_card_and_results_say_the_same(tmp_path, capsys):
    cfg = complete("t5_tiny")
    found = check(cfg)
    assert {c.name for c in found} <= {*every_question()}
    rows = [as_row(c, every_question()) for c in found]
    write_json(tmp_path / "checks.json", [r | {"stage": "train"} for r in rows])
    told = [row[2] for row in verdict_rows(rows)]
    assert [row[2] for row in checks(tmp_path).rows] == told
    assert [row[2] for row in checked(found, every_question())["rows"]] == told
    assert main(["check", "t5_tiny"]) == 0
    said = capsys.readouterr().out
    assert "Seen otherwise: " in said and max(map(len, said.splitlines())) <= 110


def test_results_of_an_older_build_have_no_advice_and_the_watch_says_where(tmp_path):
    write_json(tmp_path / "checks.json", [
        {"name": "padding", "state": "passed", "says": "alike.", "stage": "train"},
        {"name": "modes stay", "state": "warned", "says": "`body` is not.", "stage": "train", "step": 1200,
         "advice": "Look first at: Calls of `eval()`."}])
    table = checks(tmp_path)
    assert table.rows == [["padding", "passed", "alike."],
                          ["modes stay, train, step 1,200", "warned",
                           "`body` is not. Look first at: Calls of `eval()`."]]
