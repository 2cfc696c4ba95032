"""Policies as formulas: `6·l1(norm_N(scale_r2(catt(global)))) + 0.5·kl[T=2](softmax_C(logits))`, both ways.

    policy    = "none" | part { "+" part }
    part      = distiller | term
    distiller = [ weight ("·" | "*") ] name [ "[" choice { "," choice } "]" ]
    choice    = "balanced" | ("warm_up" | "stop" | "decay" | setting) "=" number
    term      = [ weight ("·" | "*") ] distance [ "[" option { "," option } "]" ] "(" operand ")"
    operand   = knowledge | transform "(" operand ")"
    option    = "shared" | "auto" | "balanced"
              | ("T" | "background" | "warm_up" | "stop" | "decay") "=" number | ("region" | "reduction") "=" name

The innermost transform acts first. Distillers are written before terms. Transforms that are `none`, a weight of 1, and options and settings
at their default are not written.
"""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from detkds_core.policy.distillers import DISTILLERS
from detkds_core.policy.rules import check, unknown
from detkds_core.policy.schema import OPTIONS, SCHEDULE
from detkds_core.policy.terms import Distiller, Policy, PolicyError, Term
from detkds_core.policy.vocabulary import KNOWLEDGE, MAX_TERMS, SLOTS

FLAGS = {"shared": "shared_attention", "auto": "auto", "balanced": "balanced"}  # what stands alone in brackets, and the option that it sets
NUMBERS = {"T": "temperature", "background": "background", "warm_up": "warm_up", "stop": "stop", "decay": "decay"}
WORDS = {"region": "region", "reduction": "reduction"}
WRITTEN = {**FLAGS, **WORDS, **NUMBERS}  # in this order
TOKEN = re.compile(
    r"(?P<number>([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?)|(?P<name>[A-Za-z_][A-Za-z0-9_]*)|(?P<sign>[-+·*()\[\],=])"
    r"|(?P<space>\s+)|(?P<other>.)",
    re.DOTALL,
)
EMPTY = "none"
BALANCED = "balanced"  # of a distiller, beside its schedule and its settings


def formula(policy: Policy) -> str:
    """The policy as a line of text; `parse_formula` gives an equal policy back."""
    return " + ".join([*map(_distiller_text, policy.distillers), *map(_term_text, policy.terms)]) or EMPTY


def _distiller_text(distiller: Distiller) -> str:
    schedule = [_option_text(name, getattr(distiller, name)) for name in SCHEDULE if getattr(distiller, name) != OPTIONS[name]]
    parts = [BALANCED] * distiller.balanced + schedule + [f"{name}={_number(value)}" for name, value in distiller.settings]
    return f"{_weight_text(distiller.weight)}{distiller.name}{_bracketed(parts)}"


def _term_text(term: Term) -> str:
    operand = term.knowledge
    for name in term.transforms:
        if name != "none":
            operand = f"{name}({operand})"
    options = [_option_text(short, getattr(term, name)) for short, name in WRITTEN.items() if getattr(term, name) != OPTIONS[name]]
    return f"{_weight_text(term.weight)}{term.distance}{_bracketed(options)}({operand})"


def _weight_text(weight: float) -> str:
    return "" if weight == 1 else f"{_number(weight)}·"


def _bracketed(options: Sequence[str]) -> str:
    return f"[{', '.join(options)}]" if options else ""


def _option_text(short: str, value: bool | float | str) -> str:
    if short in FLAGS:
        return short
    return f"{short}={value if isinstance(value, str) else _number(value)}"


def _number(value: float) -> str:
    """The shortest text that reads back the same: 6, 0.1, 1e-05."""
    return repr(value).removesuffix(".0")


def readable(text: str) -> str:
    """A formula as people read it: numbers with at most four significant digits, and whole ones whole.

    Another policy by less than 0.05 % of a weight; who has to repeat the very same takes the formula, or the JSON.

    >>> readable("0.7421037228031555·l2(scale_r2(global)) + gid[candidates=12500]")
    '0.7421·l2(scale_r2(global)) + gid[candidates=12500]'
    """
    return "".join(_brief(match.group()) if match.lastgroup == "number" else match.group() for match in TOKEN.finditer(text))


def _brief(number: str) -> str:
    """`0.7421`, `2.121`, `13.31`, `12346`; a number that is as short already stays as it is written."""
    value = float(number)
    digits = max(4, len(str(int(value))))
    short = _number(float(f"{value:.{digits}g}"))
    return short if len(short) < len(number) else number


class Token(NamedTuple):
    kind: str  # number, name, sign, other, end
    text: str
    column: int  # from 1


def parse_formula(text: str) -> Policy:
    """Read a legal policy. Raises PolicyError with the column of the first fault of the text, or with every fault of what it means."""
    policy = read_formula(text)
    if errors := check(policy):
        raise PolicyError(errors)
    return policy


def read_formula(text: str) -> Policy:
    """Read a policy that may be illegal: `check` says what is wrong with it. Raises PolicyError with the first fault of the text."""
    found = [Token(match.lastgroup or "other", match.group(), match.start() + 1) for match in TOKEN.finditer(text)]
    tokens = [token for token in found if token.kind != "space"]
    if [token.text for token in tokens] == [EMPTY]:
        return Policy(())
    reader = Reader([*tokens, Token("end", "the end", len(text) + 1)])
    terms: list[Term] = []
    distillers: list[Distiller] = []
    while not (terms or distillers) or reader.take("+"):
        if reader.at_distiller():
            if len(distillers) == len(DISTILLERS):
                raise PolicyError([("policy.distillers", f"more than {len(DISTILLERS)} distillers; at most {len(DISTILLERS)}")])
            distillers.append(reader.distiller(f"policy.distillers[{len(distillers)}]"))
            continue
        if len(terms) == MAX_TERMS:
            raise PolicyError([("policy.terms", f"more than {MAX_TERMS} terms; at most {MAX_TERMS}")])
        terms.append(reader.term(f"policy.terms[{len(terms)}]"))
    if reader.next.kind != "end":
        raise reader.fault("policy", "'+' and another term or distiller, or the end")
    return Policy(tuple(terms), tuple(distillers))


class Reader:
    """A place in the tokens of a formula, and what can be read from there on."""

    def __init__(self, tokens: Sequence[Token]) -> None:
        self.tokens = tokens
        self.place = 0

    @property
    def next(self) -> Token:
        return self.tokens[self.place]

    def fault(self, path: str, wanted: str) -> PolicyError:
        token = self.next
        text = token.text if token.kind == "end" else repr(token.text[:40])
        return PolicyError([(path, f"column {token.column}: {text} where {wanted} should be")])

    def take(self, *signs: str) -> bool:
        """Whether one of the signs comes next; then it is read."""
        if self.next.kind == "sign" and self.next.text in signs:
            self.place += 1
            return True
        return False

    def demand(self, path: str, sign: str) -> None:
        if not self.take(sign):
            raise self.fault(path, repr(sign))

    def text_of(self, path: str, kind: str, wanted: str) -> str:
        """The text of the next token, which has to be of the kind."""
        if self.next.kind != kind:
            raise self.fault(path, wanted)
        self.place += 1
        return self.tokens[self.place - 1].text

    def at_distiller(self) -> bool:
        """Whether a distiller comes next, or a weight, a sign and a distiller."""
        place = self.place + 2 * (self.next.kind == "number")
        return place < len(self.tokens) and self.tokens[place].text in DISTILLERS

    def weight(self, path: str) -> float:
        """The weight that may come next; 1 where none does."""
        if self.next.kind != "number":
            return 1.0
        weight = float(self.text_of(path, "number", "a weight"))
        if not self.take("·", "*"):
            raise self.fault(path, "'·' or '*'")
        return weight

    def term(self, path: str) -> Term:
        weight = self.weight(path)
        first = self.next
        distance = self.text_of(path, "name", "a weight or a distance")
        options = self.options(path) if self.take("[") else {}
        if self.next.text != "(" and (whole := _formula_of(distance)) is not None:
            message = f"{distance!r} is the name of a policy, which stands alone and is no part of a formula"
            raise PolicyError([(path, f"column {first.column}: {message}{f'; its own is {whole}' if whole != distance else ''}")])
        self.demand(path, "(")
        names = [self.text_of(path, "name", "a transform or knowledge")]  # outermost first
        while self.take("("):
            names.append(self.text_of(path, "name", "a transform or knowledge"))
        for _ in names:
            self.demand(path, ")")
        *transforms, knowledge = names
        return Term(knowledge, _slots_filled(path, knowledge, transforms[::-1]), distance, weight, **options)

    def distiller(self, path: str) -> Distiller:
        weight = self.weight(path)
        name = self.text_of(path, "name", "a distiller")
        settings: dict[str, float] = {}
        options: dict[str, Any] = {}
        if self.take("["):
            while not (settings or options) or self.take(","):
                column = self.next.column
                choice = self.text_of(path, "name", f"{BALANCED!r}, {', '.join(SCHEDULE)} or a setting of {name}")
                own = choice == BALANCED or choice in SCHEDULE
                where = f"{path}.{choice}" if own else f"{path}.settings.{choice}"
                if choice in options or choice in settings:
                    raise PolicyError([(where, f"column {column}: {choice} is given twice")])
                if choice != BALANCED:
                    self.demand(where, "=")
                if own:
                    options[choice] = self.value(where, choice)
                else:
                    settings[choice] = float(self.text_of(where, "number", "a number"))
            self.demand(path, "]")
        return Distiller(name, tuple(sorted(settings.items())), weight, **options)

    def options(self, path: str) -> dict[str, Any]:
        """What stands between brackets, the first of which has been read."""
        options: dict[str, Any] = {}
        choices = ", ".join(WRITTEN)
        while not options or self.take(","):
            column = self.next.column
            short = self.text_of(path, "name", f"an option ({choices})")
            if short not in WRITTEN:
                raise PolicyError([(path, f"column {column}: {short!r} is not an option; one of {choices}")])
            name = WRITTEN[short]
            if name in options:
                raise PolicyError([(f"{path}.{name}", f"column {column}: {short} is given twice")])
            if short not in FLAGS:
                self.demand(f"{path}.{name}", "=")
            options[name] = self.value(f"{path}.{name}", short)
        self.demand(path, "]")
        return options

    def value(self, path: str, short: str) -> bool | int | float | str:
        """The value of an option, from behind its `=` on."""
        if short in FLAGS:
            return True
        if short in WORDS:
            return self.text_of(path, "name", f"the name of a {short}")
        return self.whole(path) if short == "warm_up" else float(self.text_of(path, "number", "a number"))

    def whole(self, path: str) -> int:
        if self.next.kind != "number" or not self.next.text.isdecimal():
            raise self.fault(path, "a whole number of steps")
        return int(self.text_of(path, "number", "a number")[:20])  # more digits are refused all the same, and sooner


def _formula_of(name: str) -> str | None:
    """The formula of a named policy; None where no policy has the name."""
    from detkds_core.policy.named import named_policies  # which reads its formulas here

    named = named_policies().get(name)
    return named.formula if named is not None else None


def _slots_filled(path: str, knowledge: str, names: Sequence[str]) -> tuple[str, ...]:
    """The transforms of a term, `none` where nothing is written. names: innermost first."""
    if knowledge not in KNOWLEDGE:
        raise PolicyError([(f"{path}.knowledge", unknown(knowledge, "kind of knowledge", KNOWLEDGE))])
    slots = SLOTS[knowledge]
    filled = ["none"] * len(slots)
    free = 0  # the first slot that the next transform may take
    for name in names:
        if name == "none":
            continue
        place = next((place for place, (_, choices) in enumerate(slots) if name in choices), None)
        if place is None:
            choices = tuple(choice for _, choices in slots for choice in choices if choice != "none")
            raise PolicyError([(f"{path}.transforms", unknown(name, f"transform of {knowledge}", choices or ("none",)))])
        slot = slots[place][0]
        if filled[place] != "none":
            raise PolicyError([(f"{path}.transforms[{place}]", f"{name!r} and {filled[place]!r} are both {slot}; a term has one")])
        if place < free:
            later = next(one for one in filled[place:] if one != "none")
            order = ", then ".join(slot for slot, _ in slots)
            raise PolicyError([(f"{path}.transforms[{place}]", f"{name!r} acts before {later!r}, so it stands inside it: {order}")])
        filled[place] = name
        free = place + 1
    return tuple(filled)
