"""How a detector is trained and measured."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Self

OPTIMIZERS = ("adamw", "sgd")
SCHEDULES = ("one_cycle", "steps")
AUGMENTATIONS = ("none", "flip", "dihedral", "aerial")


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a detector is trained and measured. Iterations are optimisation steps; sizes are pixels of the longer image side."""

    iterations: int = 300
    batch: int = 8
    lr: float = 2e-3  # peak
    optimizer: str = "adamw"
    weight_decay: float = 0.05
    schedule: str = "one_cycle"  # "steps": MMDetection's 1x, warm-up 500, tenfold down at 8/12 and 11/12
    image_size: int = 128
    augment: str = "flip"  # "dihedral": 8 symmetries, for pictures without an up; "aerial": also zoom and light
    clip: float = 35.0  # largest gradient norm
    train_images: int | None = None  # the first n images of a seeded permutation; None: all
    eval_images: int | None = None  # the first n selection images by id; the report always uses all

    @classmethod
    def from_json(cls, data: Mapping[str, Any], base: "Recipe | None" = None) -> Self:
        """Read a recipe over the defaults of `base`. Raises ValueError that names every wrong field."""
        known = {field.name for field in fields(cls)}
        errors = [f"recipe.{key}: not a field; one of {', '.join(sorted(known))}" for key in data if key not in known]
        if errors:
            raise ValueError("; ".join(errors))
        recipe = replace(base, **data) if base is not None else cls(**data)
        if errors := recipe.errors():
            raise ValueError("; ".join(errors))
        return recipe  # type: ignore[return-value]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def errors(self) -> list[str]:
        """What is wrong with it, one sentence a field."""
        found = []
        for name, low, high in (("iterations", 1, 10_000_000), ("batch", 1, 4096), ("image_size", 32, 4096)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
                found.append(f"recipe.{name}: {value!r} is not an integer from {low} to {high}")
        for name in ("train_images", "eval_images"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                found.append(f"recipe.{name}: {value!r} is not a positive integer or null (all)")
        for name, high_rate in (("lr", 10.0), ("clip", 1e6)):
            value = getattr(self, name)
            if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value <= high_rate:
                found.append(f"recipe.{name}: {value!r} is not a number above 0 and at most {high_rate}")
        if not isinstance(self.weight_decay, int | float) or not 0 <= self.weight_decay <= 1:
            found.append(f"recipe.weight_decay: {self.weight_decay!r} is not a number from 0 to 1")
        for name, choices in (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES), ("augment", AUGMENTATIONS)):
            if getattr(self, name) not in choices:
                found.append(f"recipe.{name}: {getattr(self, name)!r} is not known; one of {', '.join(choices)}")
        return found
