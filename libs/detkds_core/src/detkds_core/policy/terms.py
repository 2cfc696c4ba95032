"""A policy: what is compared between teacher and student, after which transforms, by which distance, and how much it weighs."""

from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar


@dataclass(frozen=True, slots=True)
class Term:
    """One loss of a policy.

    A term may hold anything; `legality` says what is wrong with it, and `from_json` and `parse_formula` refuse what is illegal.
    """

    knowledge: str
    transforms: tuple[str, ...]  # in the order they act: attention, scale, normalisation; logits and localization have one
    distance: str
    weight: float
    temperature: float = 1.0  # of the softmax of `kl` and `kl_edges`; the loss is times its square
    shared_attention: bool = False  # satt and catt: the teacher's attention scales both sides
    background: float = 0.5  # fgbg: weight of the background, foreground is 1
    warm_up: int = 0  # training steps in which the weight rises from 0; fewer of them where a training stands for a longer one
    stop: float = 1.0  # share of the training after which the term ends
    decay: float = 1.0  # what is left of the weight at the end of the training, along a cosine
    region: str = "all"  # where it looks; `all` is the knowledge's own place, see `vocabulary.REGIONS`
    reduction: str = "mean"  # over elements; `sum`: over all but the images, mean over images
    auto: bool = False  # the weight is the ratio to the task's loss at the term's first step, and is turned into a weight there
    balanced: bool = False  # the same with the lengths of both gradients on backbone and neck, where the training starts


@dataclass(frozen=True, slots=True)
class Distiller:
    """A hand-designed loss with learned parts, such as FGD. settings: those that are not at their default, sorted by name."""

    name: str
    settings: tuple[tuple[str, float], ...] = ()
    weight: float = 1.0  # of all of it, beside those among its settings
    balanced: bool = False  # this, and the schedule, as of a term
    warm_up: int = 0
    stop: float = 1.0
    decay: float = 1.0


@dataclass(frozen=True, slots=True)
class Policy:
    """The sum of its terms and distillers. Without any it is training without distillation."""

    terms: tuple[Term, ...]
    distillers: tuple[Distiller, ...] = ()

    @property
    def parts(self) -> tuple[Term | Distiller, ...]:
        return (*self.terms, *self.distillers)


Part = TypeVar("Part", bound=Term | Distiller)


def unscheduled(part: Part) -> Part:
    """The same, counting alike at every step."""
    return replace(part, warm_up=0, stop=1.0, decay=1.0)


def acts_throughout(policy: Policy) -> bool:
    """Whether all of it counts alike at every step."""
    return all(part == unscheduled(part) for part in policy.parts)


class Reason(NamedTuple):
    """Why a term is illegal: the field at fault, as in JSON (`transforms[2]`), and what would be right."""

    field: str
    message: str

    def __str__(self) -> str:
        return f"{self.field}: {self.message}"


class PolicyError(ValueError):
    """A policy that cannot be read or has no meaning. errors: (path, message) for every fault, such as `policy.terms[1].weight`."""

    def __init__(self, errors: list[tuple[str, str]]) -> None:
        super().__init__("; ".join(f"{path}: {message}" for path, message in errors))
        self.errors = errors
