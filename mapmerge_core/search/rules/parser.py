"""Rules from text, such as ``MNIST >= 0.9, others >= 65% of single, maximize worst``.

    rule       = clause {("," | ";" | "and") clause}       one objective among them, anywhere
    clause     = who {"and" who} (">=" | "<=") number ["%"] ["of" "single"]
               | ("maximize" | "minimize") ("mean" | "worst" | term {"+" term})
    who        = "all" | "others" | name                   others: the tasks that no threshold names
    term       = [number ["*"]] name
    name       = a word, or anything in double quotes

Keywords and names may be written in any case, and ≥, ≤, maximise and minimise too.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from decimal import Decimal, DecimalException
from difflib import get_close_matches
from math import inf, isfinite
from typing import TYPE_CHECKING, NamedTuple

from mapmerge_core.errors import RuleError
from mapmerge_core.search.rules.rule import KEYWORDS, Objective, Rule, Scope, Threshold, number_text, quoted

if TYPE_CHECKING:
    from collections.abc import Sequence

TOKEN = re.compile(
    r"""(?P<quoted>"(?:[^"\\]|\\.)*")
    |(?P<comparison>[<>=≤≥]+)
    |(?P<number>(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?(?!\w))
    |(?P<word>\w(?:[\w.\-/]*\w)?)
    |(?P<symbol>\S)""",
    re.VERBOSE,
)
COMPARISONS = {">=": True, "≥": True, "<=": False, "≤": False}
VERBS = {"maximize": False, "maximise": False, "minimize": True, "minimise": True}
EXAMPLE = "all >= 70%, maximize worst"


class Token(NamedTuple):
    """A piece of a rule's text: its kind, its text (without quotes) and where it starts."""

    kind: str
    text: str
    position: int


def parse_rule(
    text: str,
    tasks: Sequence[str],
    *,
    maximize: Sequence[bool] | None = None,
    bounds: Sequence[tuple[float, float]] | None = None,
) -> Rule:
    """The rule that a text means.

    Args:
        text: What a person typed.
        tasks: The study's task names, in order.
        maximize: For each task, whether its metric goes up: then ``>=`` and ``maximize`` belong to it, else
            ``<=`` and ``minimize``. Not checked if left out.
        bounds: Each task's lowest and highest possible metric. If left out, a metric that must be
            at least something is taken for a fraction.

    Raises:
        RuleError: The text is no rule over these tasks; its position is that of the word at fault.
    """
    return _Parser(text, tuple(tasks), maximize, bounds).rule()


@dataclass
class _Parser:
    text: str
    tasks: tuple[str, ...]
    maximize: Sequence[bool] | None
    bounds: Sequence[tuple[float, float]] | None
    tokens: list[Token] = field(init=False)
    thresholds: list[tuple[Threshold, Token, Token]] = field(init=False, default_factory=list)
    objective: Objective | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.tokens = [_token(match) for match in TOKEN.finditer(self.text)]
        self.tokens.append(Token("end", "", len(self.text)))
        self.tokens.reverse()  # the next one is the last: pop() takes it

    def rule(self) -> Rule:
        if self._next.kind == "end":
            raise self._error(f'The rule is empty: write one such as "{EXAMPLE}".', self._next)
        self._clause()
        while self._next.kind != "end":
            if not (self._accept("symbol", ",", ";") or self._accept("word", "and")):
                raise self._error(f'A comma belongs before "{self._next.text}".', self._next)
            self._clause()
        if self.objective is None:
            raise self._error('This rule has no objective: add one such as "maximize worst".', self._next)
        rule = Rule(self.tasks, tuple(threshold for threshold, _, _ in self.thresholds), self.objective)
        for threshold, who, value in self.thresholds:
            self._check_threshold(rule, threshold, who, value)
        return rule

    def _clause(self) -> None:
        verb = self._next
        if self._accept("word", *VERBS):
            if self.objective is not None:
                raise self._error(f'A rule has one objective, and "{verb.text}" starts a second one.', verb)
            self.objective = self._objective(VERBS[verb.text.lower()])
            return
        subjects = [self._who()]
        while self._accept("word", "and"):
            subjects.append(self._who())
        sign = self.tokens.pop()
        if sign.text not in COMPARISONS:
            raise self._error(f"{_name(sign)} stands where >= or <= belongs, after the task.", sign)
        value = self._next
        amount, percent = self._amount()
        relative = bool(self._accept("word", "of"))
        if relative and not self._accept("word", "single"):
            raise self._error(
                f'After "of" comes "single" (the single-task model), not {_name(self._next)}.', self._next
            )
        for who, scope, task in subjects:
            threshold = Threshold(scope, task, COMPARISONS[sign.text], amount, relative, percent)
            if any((t.scope, t.task) == (scope, task) for t, _, _ in self.thresholds):
                raise self._error(f"There are two thresholds for {threshold.who}: keep one of them.", who)
            self.thresholds.append((threshold, who, value))

    def _who(self) -> tuple[Token, Scope, str]:
        token = self._next
        if self._accept("word", "all"):
            return token, "all", ""
        if self._accept("word", "others"):
            return token, "others", ""
        return token, "task", self._task("A threshold")

    def _objective(self, minimize: bool) -> Objective:
        target = self._next
        if self._accept("word", "mean"):
            self._check_verb(minimize, self.tasks, target)
            return Objective("mean", minimize)
        if self._accept("word", "worst"):
            self._check_verb(minimize, self.tasks, target)
            return Objective("worst", minimize)
        if target.kind == "word" and target.text.lower() in ("all", "others"):
            raise self._error(
                f'"{target.text}" is no objective: write mean, worst, or tasks joined by +.', target
            )
        weights = dict([self._term(minimize)])
        while self._accept("symbol", "+"):
            start = self._next
            task, weight = self._term(minimize)
            if task in weights:
                raise self._error(f"{quoted(task)} is in the objective twice: add up its weights.", start)
            weights[task] = weight
        return Objective("sum", minimize, tuple(weights.items()))

    def _term(self, minimize: bool) -> tuple[str, float]:
        weight = 1.0
        if self._next.kind == "number":
            token = self.tokens.pop()
            weight = float(token.text)
            if not 0 < weight < inf:
                raise self._error(f"A weight is above zero, unlike {token.text}.", token)
            self._accept("symbol", "*", "×", "·")
        token = self._next
        task = self._task("An objective")
        self._check_verb(minimize, (task,), token)
        return task, weight

    def _amount(self) -> tuple[float, bool]:
        token = self.tokens.pop()
        if token.kind != "number":
            raise self._error(
                f"{_name(token)} stands where a threshold's number belongs, such as 70%.", token
            )
        percent = bool(self._accept("symbol", "%"))
        try:
            amount = float(Decimal(token.text) / (100 if percent else 1))
        except DecimalException:  # an exponent of astronomic size
            amount = inf
        if not isfinite(amount):
            raise self._error(f"{token.text} is no number that a threshold can be.", token)
        return amount, percent

    def _task(self, place: str) -> str:
        token = self.tokens.pop()
        if token.text == '"' and token.kind == "symbol":
            raise self._error("The double quote that opens here is never closed.", token)
        if token.kind not in ("word", "quoted"):
            raise self._error(f"{_name(token)} stands where a task belongs: {_listed(self.tasks)}.", token)
        folded = [task for task in self.tasks if task.casefold() == token.text.casefold()]
        if token.text in folded:
            return token.text
        if len(folded) == 1 and (token.kind == "quoted" or token.text.lower() not in KEYWORDS):
            return folded[0]
        if token.kind == "word" and token.text.lower() in KEYWORDS:
            raise self._error(
                f'{place} needs a task where "{token.text}" stands: {_listed(self.tasks)}.', token
            )
        known = {word.casefold(): word for word in KEYWORDS[:-2]} | {
            t.casefold(): quoted(t) for t in self.tasks
        }
        close = get_close_matches(token.text.casefold(), known, n=1)
        hint = f" (did you mean {known[close[0]]}?)" if close else ""
        raise self._error(
            f'There is no task "{token.text}"{hint}: the tasks are {_listed(self.tasks)}.', token
        )

    def _check_threshold(self, rule: Rule, threshold: Threshold, who: Token, value: Token) -> None:
        covered = rule.covered(threshold)
        if not covered:
            raise self._error(
                'There is no task left for "others": every task has a threshold of its own.', who
            )
        if threshold.relative and not 0 < threshold.value < inf:
            raise self._error(f"A share of the single-task model is above zero, unlike {value.text}.", value)
        for index in covered:
            if self.maximize is not None and self.maximize[index] != threshold.at_least:
                way, sign = ("higher", ">=") if self.maximize[index] else ("lower", "<=")
                raise self._error(f"{quoted(self.tasks[index])} is better {way}: write {sign} for it.", who)
            low, high = (
                self.bounds[index] if self.bounds else ((0.0, 1.0) if threshold.at_least else (-inf, inf))
            )
            if threshold.relative or low <= threshold.value <= high:
                continue
            if high == 1 and 1 < threshold.value <= 100 and not threshold.percent:
                raise self._error(f"{value.text} is more than all: did you mean {value.text}%?", value)
            said, least, most = (number_text(x, threshold.percent) for x in (threshold.value, low, high))
            raise self._error(
                f"{quoted(self.tasks[index])} can't be {said}: it lies between {least} and {most}.",
                value,
            )

    def _check_verb(self, minimize: bool, tasks: Sequence[str], token: Token) -> None:
        for task in tasks if self.maximize is not None else ():
            up = self.maximize[self.tasks.index(task)]  # type: ignore[index]
            if up == minimize:
                way, verb = ("higher", "maximize") if up else ("lower", "minimize")
                raise self._error(f"{quoted(task)} is better {way}: only {verb} suits it.", token)

    @property
    def _next(self) -> Token:
        return self.tokens[-1]

    def _accept(self, kind: str, *texts: str) -> Token | None:
        """Take the next token if it is one of these (keywords in any case)."""
        return self.tokens.pop() if self._next.kind == kind and self._next.text.lower() in texts else None

    def _error(self, message: str, token: Token) -> RuleError:
        return RuleError(message, self.text, token.position)


def _token(match: re.Match[str]) -> Token:
    kind, text = str(match.lastgroup), match.group()
    return Token(kind, re.sub(r"\\(.)", r"\1", text[1:-1]) if kind == "quoted" else text, match.start())


def _name(token: Token) -> str:
    return "Nothing" if token.kind == "end" else f'"{token.text}"'


def _listed(tasks: Sequence[str]) -> str:
    return ", ".join(map(quoted, tasks))
