"""Rules as text and as tables."""

import random

import pytest

from mapmerge_core.errors import RuleError
from mapmerge_core.search.rules import Rule, Target, Threshold, parse_rule, parse_table

TASKS = ("MNIST", "SUN397", "Fashion MNIST", "CIFAR-10", "all")


def threshold(name, value, *, at_least=True, reference=""):
    scope = name if name in ("all", "others") else "one"
    return Threshold(scope, "" if scope != "one" else name, at_least, value, reference)


def maximize(*weights):
    return Target("sum", weights=tuple(weights))


class TestText:
    @pytest.mark.parametrize(
        ("text", "thresholds", "objective"),
        [
            ("all >= 70%, maximize SUN397", [threshold("all", 0.7)], maximize(("SUN397", 1.0))),
            (
                "MNIST >= 0.9, others >= 65% of single, maximize worst",
                [threshold("MNIST", 0.9), threshold("others", 0.65, reference="single")],
                Target("worst"),
            ),
            ("maximize mean", [], Target("mean")),
            ("maximize 2 MNIST + 1 SUN397", [], maximize(("MNIST", 2.0), ("SUN397", 1.0))),
            ("maximize 0.7*MNIST + 0.3*SUN397", [], maximize(("MNIST", 0.7), ("SUN397", 0.3))),
            (
                "MNIST and SUN397 >= 80%; maximise mean",
                [threshold("MNIST", 0.8), threshold("SUN397", 0.8)],
                Target("mean"),
            ),
            (
                "MNIST ≥ .9 and SUN397 >= 0.5 and maximize mean",
                [threshold("MNIST", 0.9), threshold("SUN397", 0.5)],
                Target("mean"),
            ),
            ("MAXIMIZE mnist, ALL >= 7%", [threshold("all", 0.07)], maximize(("MNIST", 1.0))),
            ('"fashion mnist">=0.8,maximize CIFAR-10', [threshold("Fashion MNIST", 0.8)], maximize(("CIFAR-10", 1.0))),
            (
                "all >= 90% OF Pretrained, MNIST >= 2 of pretrained, maximize worst",
                [threshold("all", 0.9, reference="pretrained"), threshold("MNIST", 2.0, reference="pretrained")],
                Target("worst"),
            ),
            ("MNIST <= 20, minimize worst", [threshold("MNIST", 20.0, at_least=False)], Target("worst", minimize=True)),
            (
                "MNIST ≤ 110% OF SINGLE, minimise MNIST",
                [threshold("MNIST", 1.1, at_least=False, reference="single")],
                Target("sum", minimize=True, weights=(("MNIST", 1.0),)),
            ),
        ],
    )
    def test_means_what_it_says(self, text, thresholds, objective):
        rule = parse_rule(text, TASKS)
        assert rule == Rule(TASKS, tuple(thresholds), objective)
        assert parse_rule(str(rule), TASKS) == rule

    def test_quotes_keep_a_task_apart_from_a_keyword(self):
        rule = parse_rule('"all" >= 50%, maximize "all"', TASKS)
        assert rule.thresholds[0].name == "all"
        assert str(rule) == '"all" >= 50%, maximize "all"'

    def test_percent_and_fraction_are_one_threshold_and_each_keeps_its_spelling(self):
        percent, fraction = (parse_rule(f"MNIST >= {v}, maximize worst", TASKS) for v in ("90%", "0.9"))
        assert percent == fraction
        assert str(percent) == "MNIST >= 90%, maximize worst"
        assert str(fraction) == "MNIST >= 0.9, maximize worst"

    def test_others_are_those_that_no_threshold_names(self):
        rule = parse_rule("all >= 10%, MNIST >= 0.9, SUN397 >= 0.5, others >= 30%, maximize worst", TASKS)
        assert [rule.covered(t) for t in rule.thresholds] == [(0, 1, 2, 3, 4), (0,), (1,), (2, 3, 4)]

    def test_any_rule_reads_back_equal_from_its_text_and_its_table(self):
        chance = random.Random(0)  # noqa: S311
        names = ("A", "b-2", "3D", "with space", 'quo"te', "back\\slash", "Ünïcode", "of", "x,y", "50%")
        for _ in range(300):
            tasks = tuple(chance.sample(names, chance.randint(2, len(names))))
            scopes = chance.sample([*tasks[:-1], "all", "others"], chance.randint(0, len(tasks)))
            thresholds = [
                Threshold(
                    s if s in ("all", "others") else "one",
                    "" if s in ("all", "others") else s,
                    at_least=chance.random() < 0.8,
                    value=chance.choice([chance.random(), round(0.01 + 0.9 * chance.random(), 2), 1 / 3, 1.0, 0.07]),
                    reference=chance.choice(["", "", "single", "pretrained"]),
                    percent=chance.random() < 0.5,
                )
                for s in scopes
            ]
            minimize, kind = chance.random() < 0.3, chance.choice(["sum", "mean", "worst"])
            weights = tuple((t, chance.choice([1.0, 2.0, 0.3, chance.random()])) for t in chance.sample(tasks, 2))
            rule = Rule(tasks, tuple(thresholds), Target(kind, minimize, weights if kind == "sum" else ()))
            again = parse_rule(str(rule), tasks)
            assert again == rule
            assert str(again) == str(rule)
            if all(t.value == round(t.value, 6) for t in thresholds):  # a form's percent is a float too
                assert parse_table(*rule.to_table(), tasks) == rule


class TestTable:
    def test_rows_are_what_a_form_shows(self):
        rule = parse_rule(
            "MNIST >= 90%, others >= 65% of single, CIFAR-10 <= 0.3, all >= 0.9 of pretrained, maximize worst", TASKS
        )
        assert rule.to_table() == (
            [
                {"objective": "MNIST", "comparison": "at least", "value": 90.0, "unit": "%"},
                {"objective": "others", "comparison": "at least", "value": 65.0, "unit": "% of single"},
                {"objective": "CIFAR-10", "comparison": "at most", "value": 0.3, "unit": ""},
                {"objective": "all", "comparison": "at least", "value": 0.9, "unit": "of pretrained"},
            ],
            "maximize worst",
        )

    def test_names_need_no_quotes_in_a_form(self):
        row = {"objective": "Fashion MNIST", "comparison": "at least", "value": 80, "unit": "%"}
        assert str(parse_table([row], "maximize mean", TASKS)) == '"Fashion MNIST" >= 80%, maximize mean'

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"objective": "MNITS"}, "did you mean MNIST"),
            ({"value": None}, "None"),
            ({"value": float("nan")}, "nan"),
            ({"value": 170}, "170%"),
            ({"unit": "points"}, "points"),
            ({"comparison": "about"}, "about"),
        ],
    )
    def test_cells_that_make_no_sense_are_named(self, change, words):
        row = {"objective": "MNIST", "comparison": "at least", "value": 80, "unit": "%"} | change
        with pytest.raises(RuleError, match=words):
            parse_table([row], "maximize mean", TASKS)


class TestMistakes:
    @pytest.mark.parametrize(
        ("text", "at", "words"),
        [
            ("", "", "empty"),
            ("   ", "", "empty"),
            ("all >= 70%", "", 'no target: add one such as "maximize worst"'),
            ("MNITS >= 70%, maximize worst", "MNITS", "did you mean MNIST"),
            ("all >= 70%, maximize SUN379", "SUN379", "did you mean SUN397"),
            ("Fashion >= 70%, maximize worst", "Fashion", "Fashion MNIST"),
            ("zebra >= 70%, maximize worst", "zebra", "the objectives are MNIST, SUN397"),
            ("maxmize worst", "maxmize", "did you mean maximize"),
            ("MNIST > 70%, maximize worst", "> ", ">= or <="),
            ("MNIST = 70%, maximize worst", "= ", ">= or <="),
            ("MNIST 70%, maximize worst", "70%", ">= or <="),
            ("MNIST", "", "Nothing stands where >= or <="),
            ("MNIST >= , maximize worst", ", max", "number"),
            ("MNIST >= high, maximize worst", "high", "number"),
            ("MNIST >= -5%, maximize worst", "-5", "number"),
            ("MNIST >= 70% maximize worst", "maximize", "comma"),
            ("MNIST >= 70%,, maximize worst", ", max", "objective belongs"),
            ("MNIST >= 70%, maximize worst,", "", "objective belongs"),
            ("MNIST >= 0,9, maximize worst", "9", "objective belongs"),
            ("MNIST >= 70% of double, maximize worst", "double", "single"),
            ("MNIST >= 70% of double, maximize worst", "double", '"pretrained", not "double"'),
            ("MNIST >= 70% of , maximize worst", ", max", '"pretrained", not ","'),
            ("all >= 0 of pretrained, maximize worst", "0 ", "another model's value is above zero"),
            ("MNIST >= 90, maximize worst", "90", "did you mean 90%"),
            ("all >= 1e9999999999999999999%, maximize worst", "1e9", "no number that a threshold can be"),
            ("all >= 1e9999999999999999999, maximize worst", "1e9", "no number that a threshold can be"),
            ("all >= 1e400% of single, maximize worst", "1e400", "no number that a threshold can be"),
            ("MNIST >= 170%, maximize worst", "170%", "between 0% and 100%"),
            ("MNIST >= 700, maximize worst", "700", "between 0 and 1"),
            ("MNIST >= 0% of single, maximize worst", "0%", "above zero"),
            ("MNIST >= 70%, mnist >= 80%, maximize worst", "mnist", "two thresholds for MNIST"),
            ("all >= 7%, all >= 8%, maximize worst", "all >= 8", "two thresholds for all"),
            ("maximize worst, minimize mean", "minimize", "second"),
            ("maximize", "", "objective belongs"),
            ("maximize all", "all", "mean, worst"),
            ("maximize 0 MNIST", "0 ", "above zero"),
            ("maximize MNIST + MNIST", "MNIST$", "twice"),
            ("maximize MNIST - SUN397", "-", "comma"),
            ("maximize MNIST + mean", "mean", "needs an objective"),
            ('"MNIST >= 7%, maximize worst', '"', "never closed"),
            ("MNIST and worst >= 5%, maximize worst", "worst >=", "needs an objective"),
            ("% of single", "%", "objective belongs"),
        ],
    )
    def test_points_at_the_word(self, text, at, words):
        with pytest.raises(RuleError) as caught:
            parse_rule(text, TASKS)
        assert words in str(caught.value)
        expected = text.rindex(at.rstrip("$")) if at.endswith("$") else text.index(at) if at else len(text)
        assert caught.value.position == expected
        assert caught.value.pointer.splitlines()[1].index("^") == expected

    def test_no_task_is_left_for_others(self):
        with pytest.raises(RuleError, match="no objective left") as caught:
            parse_rule("A >= 1%, B >= 2%, others >= 3%, maximize worst", ["A", "B"])
        assert caught.value.position == 18

    def test_names_that_differ_in_case_alone_must_be_spelt_exactly(self):
        assert parse_rule("maximize a", ["A", "a"]).target == maximize(("a", 1.0))
        with pytest.raises(RuleError, match='no objective "Aa"'):
            parse_rule("maximize Aa", ["AA", "aa"])

    @pytest.mark.parametrize(
        ("text", "at", "words"),
        [
            ("Accuracy <= 50%, maximize Accuracy", "Accuracy", "higher: write >="),
            ("Perplexity >= 5, maximize Accuracy", "Perplexity", "lower: write <="),
            ("all >= 5%, maximize Accuracy", "all", "lower: write <="),
            ("maximize Perplexity", "Perplexity", "only minimize"),
            ("minimize Accuracy", "Accuracy", "only maximize"),
            ("maximize mean", "mean", "Perplexity is better lower"),
            ("minimize worst", "worst", "Accuracy is better higher"),
            ("Perplexity <= 0.5, maximize Accuracy", "0.5", "between 1 and inf"),
        ],
    )
    def test_directions_and_bounds_are_the_metrics(self, text, at, words):
        tasks, bounds = ("Accuracy", "Perplexity"), [(0.0, 1.0), (1.0, float("inf"))]
        with pytest.raises(RuleError) as caught:
            parse_rule(text, tasks, maximize=[True, False], bounds=bounds)
        assert words in str(caught.value)
        assert caught.value.position == text.index(at)
        good = "Accuracy >= 50%, Perplexity <= 20, minimize Perplexity"
        assert str(parse_rule(good, tasks, maximize=[True, False], bounds=bounds)) == good
