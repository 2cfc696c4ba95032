"""The recipe that MMDetection's configuration of a detector is trained by, as far as it can be read and done here."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from detkds_core.catalogue import Recipe
from detkds_core.catalogue.recipe import recipe_faults
from detkds_core.catalogue.schedules import ONE_X, between

GPUS = 8  # that MMDetection's configurations are for, where nothing else says how many images a step has
OPTIMIZERS = {"SGD": "sgd", "AdamW": "adamw"}
SIZES = ("Resize", "RandomResize", "RandomChoiceResize")
CUTTING = ("Mosaic", "CachedMosaic", "RandomAffine", "RandomCrop", "RandomCenterCropPad")  # whose images' scale is not the detector's
PLAIN = ("LoadImageFromFile", "LoadAnnotations", "PackDetInputs", "RandomFlip", "Pad", "FilterAnnotations", "RandomChoice", *SIZES)

# Fields that mean something by one another: a rate belongs to its optimizer and to the images a step that it is for.
RATE = ("optimizer", "lr", "momentum", "weight_decay", "batch", "accumulate", "base_batch")
LENGTH = ("epochs", "eval_every")
SIZE = ("image_size", "short_side", "train_short_sides")
LOST_WITH: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("lr", "batch", "accumulate", "base_batch"), RATE),
    **dict.fromkeys(("epochs", "iterations"), LENGTH),
    **dict.fromkeys(SIZE, SIZE),
}
OF_LENGTH = {  # the 1x schedule's suit its own length alone; what null means for each
    "milestones": "the rate falls after 8/12 and 11/12 of the run here",
    "eval_every": "it is measured at the end here",
}

Config = Mapping[str, Any]


class Reading:
    """Fields of a recipe that were found, and notes of what was not, or is not done here."""

    def __init__(self) -> None:
        self.fields: dict[str, Any] = {}
        self.notes: list[str] = []

    def keeps(self, where: str, why: str, *names: str) -> None:
        """Note that fields stay as in MMDetection's 1x schedule."""
        values = {name: getattr(ONE_X, name) for name in names}
        kept = " ".join(f"{name}={_shown(value)}" for name, value in values.items() if value is not None)
        self.notes.append(f"{where}: {why}; {kept or 'none'}, as of MMDetection's 1x schedule")

    def recipe(self) -> Recipe:
        """Of the fields that fit, with a note of each that does not."""
        while True:
            told = len(self.notes)
            try:
                return Recipe.from_json({**ONE_X.to_json(), **self.fields})
            except ValueError as error:
                for fault in recipe_faults(error):
                    self._lose(*fault.removeprefix("recipe.").split(": ", 1))
                if len(self.notes) == told:  # nothing was lost, and the next try would end as this did
                    raise

    def _lose(self, name: str, why: str) -> None:
        """Leave a field out, and those that mean nothing without it."""
        if name not in self.fields:  # with another, of which the note is
            return
        if name in OF_LENGTH:
            self.fields[name] = None
            self.notes.append(f"recipe.{name}: {why}; {OF_LENGTH[name]}")
            return
        lost = LOST_WITH.get(name, (name,))
        for one in (name, *lost):
            self.fields.pop(one, None)
        if lost == LENGTH:
            self.fields["milestones"] = None
        self.keeps(f"recipe.{name}", why, *lost)


def recipe_of(config: Config, gpus: int | None = None) -> tuple[Recipe | None, list[str]]:
    """The recipe of a configuration that is plain data, with notes of what it keeps of MMDetection's 1x schedule, or leaves out.

    A step has the images that the learning rate is for, in one forward: those of so many gpus, or where these are not given those that
    `auto_scale_lr` says. A gradient that is not clipped there is clipped at 35 here, for a policy adds to it. None for a configuration
    that says nothing of a training.
    """
    if not any(config.get(part) for part in ("optim_wrapper", "train_dataloader", "train_cfg")):
        return None, ["it says nothing of a training; without a pair, requests have to say how it is trained (recipe)"]
    found = Reading()
    pipeline, times = _training_images(config)
    _read_optimizer(config.get("optim_wrapper") or {}, found)
    if "lr" in found.fields:
        _read_batch(config, gpus, found)
    elif gpus is not None:
        found.notes.append("--gpus: has no effect; the rate, and the images that it is for, are not the configuration's")
    _read_length(config, times, found)
    _read_schedule(_listed(config.get("param_scheduler")), times, found)
    _read_sizes(pipeline, config, found)
    _read_augmentation(pipeline, found)
    for hook in _listed(config.get("custom_hooks")):
        if hook.get("type") == "EMAHook":
            found.fields["ema"] = round(1 - float(hook.get("momentum", 2e-4)), 9)
    return found.recipe(), found.notes


def _read_optimizer(wrapper: Config, found: Reading) -> None:
    optimizer = wrapper.get("optimizer") or {}
    kind = OPTIMIZERS.get(optimizer.get("type", ""))
    if kind is None or not _number(optimizer.get("lr")):
        why = f"{_shown(optimizer.get('type'))} with lr {_shown(optimizer.get('lr'))} cannot be done here, where SGD and AdamW can"
        found.keeps("optim_wrapper.optimizer", why, *RATE)
    else:
        decay = {"sgd": 0.0, "adamw": 0.01}[kind]  # torch's, where none is given
        found.fields |= {"optimizer": kind, "lr": optimizer["lr"], "weight_decay": optimizer.get("weight_decay", decay)}
        if kind == "sgd":
            found.fields["momentum"] = optimizer.get("momentum", 0.0)
        if optimizer.get("nesterov"):
            found.notes.append("optim_wrapper.optimizer.nesterov: is not done here; the momentum is plain")
    if (clip := (wrapper.get("clip_grad") or {}).get("max_norm")) is not None:
        found.fields["clip"] = clip
    if wrapper.get("type") == "AmpOptimWrapper":
        found.notes.append("optim_wrapper.type: it is trained in mixed precision; here by request (recipe.precision fp16 or bf16)")
    of_parameters = wrapper.get("paramwise_cfg") or {}
    found.fields["bias_lr_factor"] = of_parameters.get("bias_lr_mult", 1.0)
    if kind == "sgd":
        found.fields["bias_decay_factor"] = of_parameters.get("bias_decay_mult", 1.0)
        if of_parameters.get("norm_decay_mult", 1) != 1:
            found.notes.append("optim_wrapper.paramwise_cfg.norm_decay_mult: under sgd norms decay here as all weights do")
    if parts := of_parameters.get("custom_keys"):
        found.notes.append(f"optim_wrapper.paramwise_cfg.custom_keys: rates of their own of {', '.join(parts)} are not done here")


def _read_batch(config: Config, gpus: int | None, found: Reading) -> None:
    """Images a step are those that the rate is for; MMEngine counts them without `accumulative_counts`."""
    of_gpu = (config.get("train_dataloader") or {}).get("batch_size")
    scale = config.get("auto_scale_lr") or {}
    meant = scale.get("base_batch_size")
    where, rate = "auto_scale_lr.base_batch_size", f"lr {_shown(found.fields['lr'])} is taken to be for"
    one_gpu = f"its train_dataloader has {of_gpu} a GPU: if it trains on one GPU, ask for --gpus 1"
    if gpus is not None and not isinstance(of_gpu, int):
        found.notes.append("train_dataloader.batch_size: is missing, so that the images of --gpus are not known")
    if isinstance(of_gpu, int) and gpus is not None:
        step = gpus * of_gpu
        if meant is None or not scale.get("enable"):  # else MMEngine itself scales the rate to what there is
            meant = step
    elif isinstance(of_gpu, int) and (meant is None or of_gpu > meant):
        why = "is missing" if meant is None else f"{meant} are fewer than the {of_gpu} of one GPU"
        meant = step = GPUS * of_gpu
        found.notes.append(f"{where}: {why}; {rate} {step} images a step, of {GPUS} GPUs; {one_gpu}")
    elif meant is not None:
        step = meant
        if isinstance(of_gpu, int) and of_gpu != meant:
            found.notes.append(f"{rate} {step} images a step ({where}); {one_gpu}")
    else:
        found.keeps(where, "is missing, as is train_dataloader.batch_size", "batch")
        meant = step = ONE_X.batch
    forwards = (config.get("optim_wrapper") or {}).get("accumulative_counts", 1)
    found.fields |= {"batch": step, "accumulate": forwards, "base_batch": meant * forwards}


def _read_length(config: Config, times: int, found: Reading) -> None:
    train_cfg = config.get("train_cfg") or {}
    every = train_cfg.get("val_interval", 1)
    if train_cfg.get("max_epochs"):
        found.fields |= {"epochs": train_cfg["max_epochs"] * times, "eval_every": every * times}
    elif train_cfg.get("max_iters"):
        found.fields |= {"epochs": None, "iterations": train_cfg["max_iters"], "eval_every": every, "milestones": None}
    else:
        found.keeps("train_cfg", "has neither max_epochs nor max_iters", "epochs")


def _read_schedule(schedulers: Sequence[Config], times: int, found: Reading) -> None:
    by_epochs = found.fields.get("epochs", ONE_X.epochs) is not None
    found.fields["warm_up"], known = 0, False
    for one in schedulers:
        kind = str(one.get("type"))
        if kind == "MultiStepLR":
            known = True
            if one.get("by_epoch", True) == by_epochs:
                found.fields["milestones"] = _before_the_end(one["milestones"], times if by_epochs else 1, found)
            else:
                found.notes.append("param_scheduler: milestones in another unit than the length; here after 8/12 and 11/12 of it")
                found.fields["milestones"] = None
            if one.get("gamma", 0.1) != 0.1:
                found.notes.append(f"param_scheduler: a milestone multiplies the rate by 0.1 here, not by {one['gamma']:g}")
        elif kind == "CosineAnnealingLR":
            known = True
            found.fields |= {"schedule": "one_cycle", "milestones": None, "warm_up": None}
            found.notes.append("param_scheduler: for a cosine, the schedule is one_cycle here: up over 30 % of the run, then down")
        elif kind in ("LinearLR", "ConstantLR") and not one.get("begin") and not one.get("by_epoch", True):
            if found.fields["warm_up"] == 0:
                found.fields["warm_up"] = one.get("end", 0)
        elif not one.get("begin"):
            found.fields["warm_up"] = None
    if not known:
        found.notes.append("param_scheduler: has no MultiStepLR and no cosine; the rate falls tenfold after 8/12 and 11/12 of the run here")
        found.fields["milestones"] = None
    if found.fields.get("schedule") == "one_cycle":
        found.fields["warm_up"] = None
    elif found.fields["warm_up"] is None:
        found.notes.append("param_scheduler: a warm-up in epochs or of another form; the rate rises over 500 iterations here")


def _before_the_end(milestones: Sequence[Any], times: int, found: Reading) -> list[Any] | None:
    """Milestones that the run comes to; where it comes to none, 8/12 and 11/12, for a rate that never falls cannot be said here."""
    epochs = found.fields.get("epochs", ONE_X.epochs)
    length = epochs if epochs is not None else found.fields["iterations"]
    late = [one for one in milestones if _number(one) and _number(length) and one * times >= length]
    if late:
        said = "param_scheduler: the run ends before the rate falls at " + ", ".join(map(_shown, late))
        never = "it never falls there; here it falls tenfold after 8/12 and 11/12 of the run"
        found.notes.append(f"{said}; {never if len(late) == len(milestones) else 'left out'}")
    return [one * times for one in milestones if one not in late] or None


def _read_sizes(pipeline: Sequence[Config], config: Config, found: Reading) -> None:
    """From the training's images, or where these are put together or cut from the validation's."""
    cut = [one["type"] for one in pipeline if one.get("type") in CUTTING]
    dataset = (config.get("val_dataloader") or config.get("test_dataloader") or {}).get("dataset") or {}
    where, steps = ("val_dataloader", list(_steps(dataset.get("pipeline")))) if cut else ("train_dataloader", pipeline)
    sizes = next((one for one in steps if one.get("type") in SIZES), {})
    scales = _scales(sizes)
    if not scales:
        why = f"no Resize to a scale in pixels{' beside ' + cut[0] if cut else ''}"
        found.keeps(f"{where}.dataset.pipeline", why, "image_size", "short_side")
        return
    longer, shorter = max(max(scale) for scale in scales), sorted({min(scale) for scale in scales})
    found.fields |= {"image_size": longer, "short_side": shorter[-1] if shorter[-1] < longer else None}
    if len(shorter) > 1 and sizes["type"] == "RandomResize":
        found.fields["train_short_sides"] = list(between(shorter[0], shorter[-1]))
    elif len(shorter) > 1:
        found.fields["train_short_sides"] = shorter
    if not sizes.get("keep_ratio", False):
        found.notes.append("keep_ratio: is false there; here images keep their ratio")


def _read_augmentation(pipeline: Sequence[Config], found: Reading) -> None:
    flips = [one for one in pipeline if one.get("type") == "RandomFlip"]
    found.fields["augment"] = "flip" if flips else "none"
    if others := list(dict.fromkeys(one["type"] for one in pipeline if one.get("type") not in PLAIN)):
        found.notes.append(f"train_dataloader: its training images get no {', '.join(others)} here")
    if any(one.get("direction", "horizontal") != "horizontal" for one in flips):
        found.notes.append("train_dataloader: RandomFlip mirrors from left to right alone here; augment=dihedral draws all 8 symmetries")


def _training_images(config: Config) -> tuple[list[Config], int]:
    """The transforms of a training's images, and how often an epoch of MMEngine's shows each of them."""
    dataset = (config.get("train_dataloader") or {}).get("dataset") or {}
    pipeline: list[Config] = []
    times = 1
    while dataset:
        pipeline = [*_steps(dataset.get("pipeline")), *pipeline]
        times *= dataset.get("times", 1)
        inner = dataset.get("dataset") or dataset.get("datasets") or {}
        dataset = inner[0] if isinstance(inner, list) else inner
    return pipeline, times


def _steps(pipeline: Any) -> Iterator[Config]:
    """Transforms one by one; of a `RandomChoice` those of its first way."""
    for one in _listed(pipeline):
        yield one
        if one.get("type") == "RandomChoice" and one.get("transforms"):
            yield from _steps(one["transforms"][0])


def _scales(resize: Config) -> list[tuple[int, int]]:
    """Of `scale=(1333, 800)`, `scale=[(1333, 640), (1333, 800)]` or `scales=[...]`; empty for what is no size in pixels."""
    given = resize.get("scale", resize.get("scales"))
    if not isinstance(given, list) or not given:
        return []
    scales = given if isinstance(given[0], list) else [given]
    whole = all(isinstance(one, list) and len(one) == 2 and all(isinstance(side, int) for side in one) for one in scales)
    return [(one[0], one[1]) for one in scales] if whole else []


def _listed(value: Any) -> list[Config]:
    """Of one or several, those that are objects."""
    several = value if isinstance(value, list) else [value]
    return [one for one in several if isinstance(one, Mapping)]


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _shown(value: Any) -> str:
    return f"{value:g}" if _number(value) else str(value)
