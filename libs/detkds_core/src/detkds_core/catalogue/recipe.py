"""How a detector is trained and measured."""

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Self, get_args

from detkds_core.names import meant

OPTIMIZERS = ("adamw", "sgd")
SCHEDULES = ("one_cycle", "steps", "anneal")
AUGMENTATIONS = ("none", "flip", "dihedral", "aerial")
PRECISIONS = ("fp32", "fp16", "bf16")
FAR_SCALE = 2.0  # images that are shown larger or smaller by more are worth a warning
LISTS = ("milestones", "train_short_sides")  # JSON lists, tuples here
FORWARD_PIXELS = 16 * 640 * 640  # of a forward on one device: 16 images of 640 x 640 px, 6 of 1333 x 800
FORWARD_IMAGES = 2  # of one device at least, as MMDetection has them
WHOLE: Mapping[str, tuple[int, int]] = {  # fields that are whole numbers, with the least and the greatest
    "iterations": (1, 10_000_000),
    "batch": (1, 4096),
    "accumulate": (1, 4096),
    "devices": (1, 64),
    "base_batch": (1, 65_536),
    "image_size": (32, 4096),
    "train_images": (1, 10_000_000),
    "eval_images": (1, 10_000_000),
    "eval_every": (1, 10_000_000),
    "warm_up": (0, 10_000_000),
    "short_side": (32, 4096),
}


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a detector is trained and measured. Iterations are optimisation steps; sizes are pixels of the image's longer side.

    `resolved` turns what depends on the number of images (epochs, automatic learning rate) into what a trainer runs.
    """

    iterations: int = 300
    epochs: float | None = None  # passes over the training images, in place of iterations
    batch: int = 8  # images of one forward, over all devices
    accumulate: int = 1  # forwards of one optimisation step: each step learns from batch * accumulate images
    devices: int = 1  # processes, a device each, that share each batch
    precision: str = "fp32"  # "fp16", "bf16": forwards under autocast; losses and weights stay fp32
    lr: float = 2e-3  # peak
    auto_scale_lr: bool = False  # lr is for base_batch images a step and is scaled to those that there are
    base_batch: int = 16  # MMDetection's: 8 GPUs of 2 images
    optimizer: str = "adamw"
    momentum: float = 0.9  # of sgd
    weight_decay: float = 0.05
    bias_lr_factor: float = 1.0  # biases outside of norms; MMDetection's FCOS: 2, and bias_decay_factor 0
    bias_decay_factor: float = 1.0  # under sgd; adamw decays neither biases nor norms
    # "steps": MMDetection's 1x and 2x, linear warm-up from lr/1000, tenfold down at each milestone; "anneal": from lr along a cosine to
    # lr/10,000, of a student that has begun to learn
    schedule: str = "one_cycle"
    warm_up: int | None = None  # iterations, of "steps"; None: 500, or a twentieth of a short run
    milestones: tuple[int, ...] | None = None  # of "steps"; in epochs where `epochs` is set, else in iterations; None: 8/12 and 11/12
    clip: float | None = 35.0  # largest gradient norm; None: any
    ema: float | None = None  # decay of the averaged weights, which are then measured and exported; None: the last weights are
    eval_every: int | None = None  # measure on the selection images so often, keep the best; in epochs where `epochs` is set; None: no
    image_size: int = 128
    short_side: int | None = None  # largest shorter side: MMDetection's (1333, 800) is image_size 1333, short_side 800
    train_short_sides: tuple[int, ...] | None = None  # multi-scale training: each image draws its short_side from these
    augment: str = "flip"  # "dihedral": 8 symmetries, for pictures without an up; "aerial": also zoom and light
    train_images: int | None = None  # the first n images of a seeded permutation; None: all
    eval_images: int | None = None  # the first n selection images by id; the report always uses all

    @classmethod
    def from_json(cls, data: Mapping[str, Any], base: "Recipe | None" = None, images: int | None = None) -> Self:
        """Read a recipe; over a base, one that is asked for in place of the base.

        Fields of the base that lose their meaning by what is asked for are dropped. What is asked for without having an effect is refused,
        unless all fields are there, as in a recipe that was read from a specification. images: of the training, for lengths in epochs.
        Raises ValueError that names every wrong field.
        """
        known = {field.name for field in fields(cls)}
        errors = [f"recipe.{key}: not a field; {meant(key, sorted(known))}" for key in data if key not in known]
        if errors:
            raise ValueError("; ".join(errors))
        given: dict[str, Any] = {key: tuple(value) if key in LISTS and isinstance(value, list) else value for key, value in data.items()}
        recipe = replace(base._yielding_to(given), **given) if base is not None else cls(**given)
        errors = recipe.errors()
        if base is not None and not errors:
            errors = recipe._idle_errors(given, images) if len(given) < len(known) else []
            recipe = recipe._without_idle(given, images)
        if errors:
            raise ValueError("; ".join(errors))
        return recipe  # type: ignore[return-value]

    def _yielding_to(self, given: Mapping[str, Any]) -> "Recipe":
        """Without what loses its meaning where other fields are given: it was counted in another unit, or was of another length or size."""
        base = self._reset(given)
        if ("epochs" in given or "iterations" in given) and (given.get("epochs") is None) != (base.epochs is None):
            base = replace(base, epochs=None, milestones=None, eval_every=None)
        if any(given.get(unit, getattr(base, unit)) != getattr(base, unit) for unit in ("epochs", "iterations")):
            base = replace(base, milestones=None)  # 8/12 and 11/12 of this length
        if given.get("image_size", base.image_size) != base.image_size:
            base = replace(base, short_side=None, train_short_sides=None)
        if given.get("short_side", base.short_side) != base.short_side:
            base = replace(base, train_short_sides=None)  # a training at this size, as it is measured
        return base

    def _reset(self, given: Mapping[str, Any]) -> "Recipe":
        """With the defaults of the fields that the optimizer, the schedule or the rate that are given leave without an effect."""
        base, usual = self, Recipe()
        if "lr" in given and "auto_scale_lr" not in given and "base_batch" not in given:
            base = replace(base, auto_scale_lr=False, base_batch=usual.base_batch)  # who names a rate means that rate
        if given.get("auto_scale_lr", True) is False:
            base = replace(base, base_batch=usual.base_batch)
        if given.get("schedule", "steps") != "steps":
            base = replace(base, warm_up=usual.warm_up, milestones=usual.milestones)
        if given.get("optimizer", "sgd") != "sgd":
            base = replace(base, momentum=usual.momentum, bias_decay_factor=usual.bias_decay_factor)
        return base

    def _without_idle(self, given: Mapping[str, Any], images: int | None) -> "Recipe":
        """Without inherited fields that a shorter run leaves no room for."""
        recipe, steps = self, self._steps(images)
        if "warm_up" not in given and steps is not None and (self.warm_up or 0) >= steps:
            recipe = replace(recipe, warm_up=None)
        if "eval_every" not in given and (self.eval_every or 0) > self._length[0]:
            recipe = replace(recipe, eval_every=None)
        return recipe

    @property
    def _length(self) -> tuple[float, str]:
        return (self.iterations, "iterations") if self.epochs is None else (self.epochs, "epochs")

    def _steps(self, images: int | None) -> int | None:
        """Optimisation steps of the run; None where they depend on a number of images that is not known."""
        return self.resolved(images or 0)[0].iterations if self.epochs is None or images else None

    def to_json(self) -> dict[str, Any]:
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @property
    def images_per_step(self) -> int:
        return self.batch * self.accumulate

    def resolved(self, images: int) -> tuple["Recipe", list[str]]:
        """The recipe in iterations, with its learning rate scaled, for so many training images; and what was changed, as warnings.

        A resolved recipe resolves to itself. Epochs end with the iteration that shows the last image.
        """
        recipe, warnings = self, []
        step = self.images_per_step
        if self.epochs is not None:
            seen = min(images, self.train_images or images)

            def iterations(epochs: float) -> int:
                return max(1, math.ceil(round(epochs * seen / step, 9)))

            recipe = replace(
                recipe,
                iterations=iterations(self.epochs),
                epochs=None,
                milestones=tuple(map(iterations, self.milestones)) if self.milestones is not None else None,
                eval_every=iterations(self.eval_every) if self.eval_every is not None else None,
            )
        if self.auto_scale_lr:
            recipe = replace(recipe, auto_scale_lr=False, lr=self.lr * step / self.base_batch)
            if step != self.base_batch:
                warnings.append(
                    f"the learning rate was scaled from {self.lr:g} to {recipe.lr:g}: "
                    f"{step} images a step instead of the {self.base_batch} that the rate is for"
                )
        return recipe, warnings

    def with_smaller_batch(self, least: int = 1) -> "Recipe | None":
        """The same images a step in more and smaller forwards (half as large if that is whole); None when they cannot be smaller.

        least: images that a forward of one device must have, for the policy's sake (`policy.images_needed`).
        """
        return self._in_parts(2, least, self.batch)

    def in_forwards(self) -> "Recipe":
        """The same images a step, in as few equal forwards as usual GPUs have room for.

        A configuration of MMDetection says how many images a step has on 8 GPUs or 16: 256 of RTMDet, 16 of 1333 x 800 px. Here a device
        sees at once what FORWARD_PIXELS hold, FORWARD_IMAGES at least: 4 of those 16, and 16 of RTMDet, of which MMDetection has 32 a GPU.
        By its own tables 4 of a RetinaNet R50 take 8 GB, and 18 of a Cascade Mask R-CNN X101-DCN, the teacher aside. Not as few as fit
        anywhere: norms that learn statistics, and terms that compare images with one another, see one forward's alone.
        """
        shorter = max(self.train_short_sides or (self.short_side or self.image_size,))
        return self._in_parts(1, 1, max(FORWARD_IMAGES, FORWARD_PIXELS // (self.image_size * shorter))) or self

    def _in_parts(self, fewest: int, least: int, most: int) -> "Recipe | None":
        """Each forward in as few parts as leave every device `least` to `most` images, and no fewer parts than `fewest`."""
        for parts in range(fewest, self.batch + 1):
            if self.batch % (parts * self.devices) == 0 and least <= self.batch // (parts * self.devices) <= most:
                return replace(self, batch=self.batch // parts, accumulate=self.accumulate * parts)
        return None

    def errors(self) -> list[str]:
        """What is wrong with it, one sentence a field."""
        found = []
        for name in ("iterations", "batch", "accumulate", "devices", "base_batch", "image_size"):
            low, high = WHOLE[name]
            if not _whole(getattr(self, name), low, high):
                found.append(f"recipe.{name}: {getattr(self, name)!r} is not an integer from {low} to {high}")
        for name, nothing in (
            ("train_images", "all"),
            ("eval_images", "all"),
            ("eval_every", "only at the end"),
            ("warm_up", "500, or a twentieth of a short run"),
            ("short_side", "any"),
        ):
            value, (low, high) = getattr(self, name), WHOLE[name]
            if value is not None and not _whole(value, low, high):
                found.append(f"recipe.{name}: {value!r} is not an integer from {low} on or null ({nothing})")
        for name, high_rate, optional in (("lr", 10.0, False), ("clip", 1e6, True), ("epochs", 100_000.0, True)):
            value = getattr(self, name)
            if not (optional and value is None) and not (_number(value) and 0 < value <= high_rate):
                found.append(f"recipe.{name}: {value!r} is not a number above 0 and at most {high_rate}" + " or null" * optional)
        for name, highest in (("weight_decay", 1), ("bias_lr_factor", 100), ("bias_decay_factor", 100)):
            value = getattr(self, name)
            if not _number(value) or not 0 <= value <= highest:
                found.append(f"recipe.{name}: {value!r} is not a number from 0 to {highest}")
        if not _number(self.momentum) or not 0 <= self.momentum < 1:
            found.append(f"recipe.momentum: {self.momentum!r} is not a number from 0 to below 1")
        if self.ema is not None and (not _number(self.ema) or not 0 < self.ema < 1):
            found.append(f"recipe.ema: {self.ema!r} is not a number between 0 and 1 or null (no average)")
        if not isinstance(self.auto_scale_lr, bool):
            found.append(f"recipe.auto_scale_lr: {self.auto_scale_lr!r} is not true or false")
        for name, choices in (
            ("optimizer", OPTIMIZERS),
            ("schedule", SCHEDULES),
            ("augment", AUGMENTATIONS),
            ("precision", PRECISIONS),
        ):
            if getattr(self, name) not in choices:
                found.append(f"recipe.{name}: {getattr(self, name)!r} is not known; one of {', '.join(choices)}")
        found += self._list_errors()
        return found or self._relation_errors()

    def _list_errors(self) -> list[str]:
        found = []
        for name, low in (("milestones", 1), ("train_short_sides", 32)):
            value = getattr(self, name)
            if value is None:
                continue
            if not isinstance(value, tuple) or not value or not all(_whole(one, low, 10_000_000) for one in value):
                found.append(f"recipe.{name}: {value!r} is not a list of integers from {low} on or null")
            elif name == "milestones" and list(value) != sorted(set(value)):
                found.append(f"recipe.{name}: {list(value)} does not rise")
        return found

    def _relation_errors(self) -> list[str]:
        found = []
        length, unit = self._length
        if self.schedule == "steps" and self.milestones is not None and self.milestones[-1] >= length:
            found.append(
                f"recipe.milestones: {list(self.milestones)} reach the end of {length:g} {unit}, where the rate would not fall any more"
            )
        if self.batch % self.devices:
            found.append(f"recipe.batch: {self.batch} images cannot be shared evenly by {self.devices} devices")
        for name, sides in (("short_side", (self.short_side or 0,)), ("train_short_sides", self.train_short_sides or ())):
            if any(side > self.image_size for side in sides):
                found.append(f"recipe.{name}: a shorter side above image_size ({self.image_size}, the longer side) has no effect")
        return found

    def _idle_errors(self, given: Mapping[str, Any], images: int | None) -> list[str]:
        """What was given and has no effect, one sentence a field."""
        asked: dict[str, Any] = {
            name: list(value) if isinstance(value, tuple) else value for name, value in given.items() if value is not None
        }
        found = []
        if {"epochs", "iterations"} <= asked.keys():
            found.append(
                f"recipe.iterations: {self.iterations} beside {self.epochs:g} epochs has no effect; give the length in one of the two"
            )
        for names, holds, now, right in (
            (("warm_up", "milestones"), self.schedule == "steps", f"under the schedule {self.schedule}", "schedule steps"),
            (("momentum", "bias_decay_factor"), self.optimizer == "sgd", f"under {self.optimizer}", "optimizer sgd"),
            (("base_batch",), self.auto_scale_lr, "without auto_scale_lr", "auto_scale_lr true"),
        ):
            if not holds:
                found += [
                    f"recipe.{name}: {asked[name]} has no effect {now}; leave it out, or give {right}" for name in names if name in asked
                ]
        steps = self._steps(images)
        if self.schedule == "steps" and steps is not None and asked.get("warm_up", 0) >= steps:
            found.append(
                f"recipe.warm_up: {self.warm_up} iterations do not end within the {steps} of the run, whose rate would never be reached; "
                f"fewer than {steps} are right, or null (500, or a twentieth of a short run)"
            )
        length, unit = self._length
        if asked.get("eval_every", 0) > length:
            found.append(f"recipe.eval_every: {self.eval_every} {unit} are longer than the run of {length:g}; fewer, or null (at the end)")
        return found


WITH_NULL = frozenset(field.name for field in fields(Recipe) if type(None) in get_args(field.type))  # fields that null is a value of


def size_warning(recipe: Recipe, sides: tuple[int, int] | None) -> str | None:
    """What has to be said where images are made far smaller or larger than they are. sides: the median longer and shorter one, pixels."""
    if sides is None:
        return None
    longer, shorter = sides
    scale = min(recipe.image_size / longer, math.inf if recipe.short_side is None else recipe.short_side / shorter)
    if 1 / FAR_SCALE <= scale <= FAR_SCALE:
        return None
    seen = f"{longer * scale:.0f} x {shorter * scale:.0f} px (recipe.image_size {recipe.image_size})"
    how = f"{1 / scale:.1f} times smaller" if scale < 1 else f"{scale:.1f} times larger"
    return f"the training images of {longer} x {shorter} px (medians of longer and shorter sides) are shown as {seen}: {how}"


def recipe_faults(error: ValueError) -> list[str]:
    """The sentences of what `Recipe.from_json` raises, one a field."""
    return re.split(r"; (?=recipe\.)", str(error))


def smaller_batch_warning(before: Recipe, after: Recipe, reason: str) -> str:
    """What has to be said of a training whose batch was cut to fit."""
    return (
        f"a batch of {before.batch} images did not fit in memory: {after.batch} at a time, {after.accumulate} times a step, so that a step "
        f"still learns from {after.images_per_step}; batch normalisation and terms that compare images see {after.batch} ({reason})"
    )


def _whole(value: Any, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
