"""Which terms have a meaning: every rule refuses a loss that could not teach, with its reason, before anything runs.

A legal term is finite, not negative, about 0 where student and teacher agree, and has a gradient where they do not.
"""

from collections.abc import Iterator

from detkds_core.policy.canonical import same_formula
from detkds_core.policy.distillers import DISTILLERS
from detkds_core.policy.meaning import RULES
from detkds_core.policy.terms import Distiller, Policy, Reason, Term
from detkds_core.policy.vocabulary import (
    DISTANCES,
    DIVERGENCES,
    KNOWLEDGE,
    MAX_BACKGROUND,
    MAX_NAME,
    MAX_TEMPERATURE,
    MAX_TERMS,
    MAX_WARM_UP,
    MAX_WEIGHT,
    MIN_TEMPERATURE,
    NOT_OFFERED,
    REDUCTIONS,
    REGIONS,
    SHAREABLE,
    SLOTS,
)

SHARED = tuple((name,) for name in SHAREABLE)


def legality(term: Term) -> list[Reason]:
    """Everything that is wrong with a term on any pair; empty for a legal one."""
    reasons = list(_names(term))
    if not reasons:  # rules about meaning would stumble over unknown names
        reasons = [reason for rule in RULES.values() for reason in rule(term)]
    return [*reasons, *_option_rules(term)]


def distiller_legality(distiller: Distiller) -> list[Reason]:
    """Everything that is wrong with a distiller and its settings; empty for a legal one."""
    entry = DISTILLERS.get(distiller.name)
    if entry is None:
        return [Reason("name", unknown(distiller.name, "distiller", tuple(DISTILLERS)))]
    reasons = list(_part_rules(distiller))
    for place, (name, value) in enumerate(distiller.settings):
        field = f"settings.{shortened(name)}"
        setting = entry.settings.get(name)
        if setting is None:
            choices = f"one of {', '.join(entry.settings)}" if entry.settings else "it has none"
            reasons.append(Reason(field, f"not a setting of {distiller.name!r}; {choices}"))
        elif not setting.low <= value <= setting.high or (setting.whole and value != int(value)):  # also refuses NaN
            kind = "a whole number" if setting.whole else "a number"
            reasons.append(Reason(field, f"{value!r} is not {kind} from {setting.low:g} to {setting.high:g} ({setting.meaning})"))
        if name in (other for other, _ in distiller.settings[:place]):
            reasons.append(Reason(field, "given twice"))
    return reasons


def check(policy: Policy) -> list[tuple[str, str]]:
    """Everything that is wrong with a policy on any pair, as (path, message); empty for a legal one."""
    errors = [(f"policy.terms[{place}].{one.field}", one.message) for place, term in enumerate(policy.terms) for one in legality(term)]
    if len(policy.terms) > MAX_TERMS:
        errors.append(("policy.terms", f"{len(policy.terms)} terms; at most {MAX_TERMS}"))
    names = [distiller.name for distiller in policy.distillers]
    for place, distiller in enumerate(policy.distillers):
        errors += [(f"policy.distillers[{place}].{one.field}", one.message) for one in distiller_legality(distiller)]
        if distiller.name in names[:place]:
            first = f"{shortened(distiller.name)!r} is distillers[{names.index(distiller.name)}] already"
            errors.append((f"policy.distillers[{place}].name", f"{first}; a distiller occurs once"))
    if not errors:
        for places, weight in same_formula(policy):
            if weight > MAX_WEIGHT:
                others = ", ".join(f"terms[{place}]" for place in places[:-1])
                message = f"the same loss as {others}, and together they weigh {weight:g}; at most {MAX_WEIGHT:g}"
                errors.append((f"policy.terms[{places[-1]}].weight", message))
    return errors


def unknown(name: object, what: str, choices: tuple[str, ...]) -> str:
    """The message for a name that is not in its vocabulary."""
    why = f" ({NOT_OFFERED[name]})" if isinstance(name, str) and name in NOT_OFFERED else ""
    article = "an" if what[0] in "aeiou" else "a"
    text = shortened(name) if isinstance(name, str) else name
    return f"{text!r} is not {article} {what}{why}; one of {', '.join(choices)}"


def shortened(text: str) -> str:
    """A text as an error repeats it: a request may hold megabytes."""
    return text if len(text) <= MAX_NAME else text[:MAX_NAME] + "..."


def _names(term: Term) -> Iterator[Reason]:
    if term.knowledge not in KNOWLEDGE:
        yield Reason("knowledge", unknown(term.knowledge, "kind of knowledge", KNOWLEDGE))
        return
    slots = SLOTS[term.knowledge]
    if len(term.transforms) != len(slots):
        wanted = f"{len(slots)} ({', '.join(slot for slot, _ in slots)})"
        yield Reason("transforms", f"{term.knowledge!r} has {wanted}, got {len(term.transforms)}; 'none' does nothing")
    for place, (name, (slot, choices)) in enumerate(zip(term.transforms, slots, strict=False)):
        if name not in choices:
            yield Reason(f"transforms[{place}]", unknown(name, slot, choices))
    if term.distance not in DISTANCES[term.knowledge]:
        yield Reason("distance", unknown(term.distance, f"distance of {term.knowledge}", DISTANCES[term.knowledge]))
    if term.region not in REGIONS[term.knowledge]:
        yield Reason("region", unknown(term.region, f"region of {term.knowledge}", REGIONS[term.knowledge]))
    if term.reduction not in REDUCTIONS:
        yield Reason("reduction", unknown(term.reduction, "reduction", REDUCTIONS))


def _option_rules(term: Term) -> Iterator[Reason]:
    if term.shared_attention and term.transforms[:1] not in SHARED:
        yield Reason("shared_attention", "only 'satt' and 'catt' have an attention of the teacher that both sides can share; false here")
    yield from _part_rules(term)
    if not MIN_TEMPERATURE <= term.temperature <= MAX_TEMPERATURE:
        yield Reason("temperature", f"{term.temperature!r} is not a number from {MIN_TEMPERATURE:g} to {MAX_TEMPERATURE:g}")
    elif term.temperature != 1 and term.distance not in DIVERGENCES:
        yield Reason("temperature", f"only {' and '.join(DIVERGENCES)} have a temperature, {term.distance!r} does not; leave it out")
    if not 0 <= term.background <= MAX_BACKGROUND:
        yield Reason("background", f"{term.background!r} is not a number from 0 to {MAX_BACKGROUND:g}")
    elif term.background != 0.5 and term.knowledge != "fgbg":
        yield Reason("background", f"only 'fgbg' has a background, {term.knowledge!r} does not; leave it out")
    if term.auto and term.balanced:
        yield Reason("balanced", "'auto' compares losses and 'balanced' gradients; a weight is one ratio, leave one of them out")


def _part_rules(part: Term | Distiller) -> Iterator[Reason]:
    if not 0 < part.weight <= MAX_WEIGHT:  # also refuses NaN
        yield Reason("weight", f"{part.weight!r} is not a number above 0 and at most {MAX_WEIGHT:g}")
    if not 0 <= part.warm_up <= MAX_WARM_UP:
        yield Reason("warm_up", f"{part.warm_up!r} is not a number of steps from 0 to {MAX_WARM_UP}")
    if not 0 < part.stop <= 1:
        yield Reason("stop", f"{part.stop!r} is not a share of the training, above 0 and at most 1")
    if not 0 <= part.decay <= 1:
        yield Reason("decay", f"{part.decay!r} is not a share of the weight, from 0 to 1")
