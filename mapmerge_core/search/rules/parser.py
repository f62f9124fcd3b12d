"""Rules from text, such as ``MNIST >= 0.9, others >= 65% of single, maximize worst``.

    rule       = clause {("," | ";" | "and") clause}       one target among them, anywhere
    clause     = who {"and" who} (">=" | "<=") number ["%"] ["of" ("single" | "pretrained")]
               | ("maximize" | "minimize") ("mean" | "worst" | term {"+" term})
    who        = "all" | "others" | name                   others: the objectives that no threshold names
    term       = [number ["*"]] name
    name       = a word, or anything in double quotes

Keywords and names may be written in any case, and ≥, ≤, maximise and minimise too.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal, DecimalException
from difflib import get_close_matches
from math import inf, isfinite
from typing import NamedTuple

from mapmerge_core.errors import RuleError
from mapmerge_core.search.rules.rule import (
    KEYWORDS,
    Reference,
    Row,
    Rule,
    Scope,
    Target,
    Threshold,
    number_text,
    quoted,
)

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
    names: Sequence[str],
    *,
    maximize: Sequence[bool] | None = None,
    bounds: Sequence[tuple[float, float]] | None = None,
) -> Rule:
    """Return the rule that a text means.

    Args:
        text: What a person typed.
        names: The study's objectives, in order.
        maximize: For each objective, whether it goes up: then ``>=`` and ``maximize`` belong to it, else
            ``<=`` and ``minimize``. Not checked if left out.
        bounds: Each objective's lowest and highest possible value. If left out, one that must be
            at least something is taken for a fraction.

    Raises:
        RuleError: The text is no rule over these objectives; its position is that of the word at fault.
    """
    return _Parser(text, tuple(names), maximize, bounds).rule()


def parse_table(
    rows: Sequence[Row],
    target: str,
    names: Sequence[str],
    *,
    maximize: Sequence[bool] | None = None,
    bounds: Sequence[tuple[float, float]] | None = None,
) -> Rule:
    """Return the rule that `Rule.to_table` showed, perhaps edited since; names need no quotes here.

    Raises:
        RuleError: As for `parse_rule`, about the text that the table amounts to.
    """
    clauses = [_clause(row, names) for row in rows]
    return parse_rule(", ".join([*clauses, target]), names, maximize=maximize, bounds=bounds)


@dataclass
class _Parser:
    text: str
    names: tuple[str, ...]
    maximize: Sequence[bool] | None
    bounds: Sequence[tuple[float, float]] | None
    tokens: list[Token] = field(init=False)
    thresholds: list[tuple[Threshold, Token, Token]] = field(init=False, default_factory=list)
    target: Target | None = field(init=False, default=None)

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
        if self.target is None:
            raise self._error('This rule has no target: add one such as "maximize worst".', self._next)
        rule = Rule(self.names, tuple(threshold for threshold, _, _ in self.thresholds), self.target)
        for threshold, who, value in self.thresholds:
            self._check_threshold(rule, threshold, who, value)
        return rule

    def _clause(self) -> None:
        verb = self._next
        if self._accept("word", *VERBS):
            if self.target is not None:
                raise self._error(f'A rule has one target, and "{verb.text}" starts a second one.', verb)
            self.target = self._target(VERBS[verb.text.lower()])
            return
        subjects = [self._who()]
        while self._accept("word", "and"):
            subjects.append(self._who())
        sign = self.tokens.pop()
        if sign.text not in COMPARISONS:
            raise self._error(f"{_name(sign)} stands where >= or <= belongs, after the objective.", sign)
        value = self._next
        amount, percent = self._amount()
        reference = self._reference()
        for who, scope, name in subjects:
            threshold = Threshold(scope, name, COMPARISONS[sign.text], amount, reference, percent)
            if any((t.scope, t.name) == (scope, name) for t, _, _ in self.thresholds):
                raise self._error(f"There are two thresholds for {threshold.who}: keep one of them.", who)
            self.thresholds.append((threshold, who, value))

    def _reference(self) -> Reference:
        """Take "of single", "of pretrained" or nothing."""
        if not self._accept("word", "of"):
            return ""
        if self._accept("word", "single"):
            return "single"
        if self._accept("word", "pretrained"):
            return "pretrained"
        raise self._error(
            f'After "of" comes "single" (the own model) or "pretrained", not {_name(self._next)}.', self._next
        )

    def _who(self) -> tuple[Token, Scope, str]:
        token = self._next
        if self._accept("word", "all"):
            return token, "all", ""
        if self._accept("word", "others"):
            return token, "others", ""
        return token, "one", self._objective("A threshold")

    def _target(self, minimize: bool) -> Target:
        target = self._next
        if self._accept("word", "mean"):
            self._check_verb(minimize, self.names, target)
            return Target("mean", minimize)
        if self._accept("word", "worst"):
            self._check_verb(minimize, self.names, target)
            return Target("worst", minimize)
        if target.kind == "word" and target.text.lower() in ("all", "others"):
            raise self._error(f'"{target.text}" is no target: write mean, worst, or objectives joined by +.', target)
        weights = dict([self._term(minimize)])
        while self._accept("symbol", "+"):
            start = self._next
            name, weight = self._term(minimize)
            if name in weights:
                raise self._error(f"{quoted(name)} is in the target twice: add up its weights.", start)
            weights[name] = weight
        return Target("sum", minimize, tuple(weights.items()))

    def _term(self, minimize: bool) -> tuple[str, float]:
        weight = 1.0
        if self._next.kind == "number":
            token = self.tokens.pop()
            weight = float(token.text)
            if not 0 < weight < inf:
                raise self._error(f"A weight is above zero, unlike {token.text}.", token)
            self._accept("symbol", "*", "×", "·")
        token = self._next
        name = self._objective("A target")
        self._check_verb(minimize, (name,), token)
        return name, weight

    def _amount(self) -> tuple[float, bool]:
        token = self.tokens.pop()
        if token.kind != "number":
            raise self._error(f"{_name(token)} stands where a threshold's number belongs, such as 70%.", token)
        percent = bool(self._accept("symbol", "%"))
        try:
            amount = float(Decimal(token.text) / (100 if percent else 1))
        except DecimalException:  # an exponent of astronomic size
            amount = inf
        if not isfinite(amount):
            raise self._error(f"{token.text} is no number that a threshold can be.", token)
        return amount, percent

    def _objective(self, place: str) -> str:
        token = self.tokens.pop()
        if token.text == '"' and token.kind == "symbol":
            raise self._error("The double quote that opens here is never closed.", token)
        if token.kind not in ("word", "quoted"):
            raise self._error(f"{_name(token)} stands where an objective belongs: {_listed(self.names)}.", token)
        folded = [name for name in self.names if name.casefold() == token.text.casefold()]
        if token.text in folded:
            return token.text
        if len(folded) == 1 and (token.kind == "quoted" or token.text.lower() not in KEYWORDS):
            return folded[0]
        if token.kind == "word" and token.text.lower() in KEYWORDS:
            raise self._error(f'{place} needs an objective where "{token.text}" stands: {_listed(self.names)}.', token)
        spellings = {word.casefold(): word for word in KEYWORDS[:-2]} | {
            name.casefold(): quoted(name) for name in self.names
        }
        close = get_close_matches(token.text.casefold(), spellings, n=1)
        hint = f" (did you mean {spellings[close[0]]}?)" if close else ""
        raise self._error(
            f'There is no objective "{token.text}"{hint}: the objectives are {_listed(self.names)}.', token
        )

    def _check_threshold(self, rule: Rule, threshold: Threshold, who: Token, value: Token) -> None:
        covered = rule.covered(threshold)
        if not covered:
            raise self._error('There is no objective left for "others": every one has a threshold of its own.', who)
        if threshold.reference and not 0 < threshold.value < inf:
            raise self._error(f"A share of another model's value is above zero, unlike {value.text}.", value)
        for index in covered:
            if self.maximize is not None and self.maximize[index] != threshold.at_least:
                way, sign = ("higher", ">=") if self.maximize[index] else ("lower", "<=")
                raise self._error(f"{quoted(self.names[index])} is better {way}: write {sign} for it.", who)
            low, high = self.bounds[index] if self.bounds else ((0.0, 1.0) if threshold.at_least else (-inf, inf))
            if threshold.reference or low <= threshold.value <= high:
                continue
            if high == 1 and 1 < threshold.value <= 100 and not threshold.percent:
                raise self._error(f"{value.text} is more than all: did you mean {value.text}%?", value)
            value_text, least, most = (number_text(x, threshold.percent) for x in (threshold.value, low, high))
            raise self._error(
                f"{quoted(self.names[index])} can't be {value_text}: it lies between {least} and {most}.", value
            )

    def _check_verb(self, minimize: bool, names: Sequence[str], token: Token) -> None:
        for name in names if self.maximize is not None else ():
            up = self.maximize[self.names.index(name)]  # type: ignore[index]
            if up == minimize:
                way, verb = ("higher", "maximize") if up else ("lower", "minimize")
                raise self._error(f"{quoted(name)} is better {way}: only {verb} suits it.", token)

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


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(quoted, names))


def _clause(row: Row, names: Sequence[str]) -> str:
    """Return a table's row as a rule's text; the parser points at what makes no sense in it."""
    name, value, unit = str(row["objective"]), row["value"], str(row["unit"])
    who = quoted(name) if name in names and name.lower() not in KEYWORDS else name
    comparison = {"at least": ">=", "at most": "<="}.get(str(row["comparison"]), row["comparison"])
    number = number_text(float(value)) if isinstance(value, int | float) else str(value)
    return f"{who} {comparison} {number}{unit if unit.startswith('%') else ' ' + unit}".rstrip()
