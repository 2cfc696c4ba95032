"""The distillers with learned parts, by name: the settings that a policy may give them, without torch."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Setting:
    """A number that a policy may set, from low to high."""

    default: float
    low: float
    high: float
    meaning: str


@dataclass(frozen=True, slots=True)
class DistillerEntry:
    """What a policy may say about a distiller."""

    settings: Mapping[str, Setting]


DISTILLERS: Mapping[str, DistillerEntry] = {
    "fgd": DistillerEntry(
        {
            "alpha": Setting(0.001, 0.0, 1.0, "weight of the foreground"),
            "beta": Setting(0.0005, 0.0, 1.0, "weight of the background"),
            "gamma": Setting(0.001, 0.0, 1.0, "weight of the attention loss"),
            "lambda": Setting(0.000005, 0.0, 1.0, "weight of the global relation"),
            "temperature": Setting(0.5, 0.01, 100.0, "of both attentions"),
        }
    ),
    "mgd": DistillerEntry(
        {
            "alpha": Setting(0.00002, 0.0, 1.0, "weight"),
            "masked": Setting(0.65, 0.0, 1.0, "share of the positions that the generator does not see"),
        }
    ),
}
