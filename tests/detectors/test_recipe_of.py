"""The recipe that is read off a configuration of MMDetection, and what of it is told rather than done."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from detkds_core.catalogue import BUILT_IN, Recipe
from detkds_core.detectors.recipe_of import recipe_of
from detkds_core.detectors.survey import read_file, training_of

SGD = {"type": "SGD", "lr": 0.01, "momentum": 0.8, "weight_decay": 0.0005}
LINEAR = {"type": "LinearLR", "start_factor": 0.001, "by_epoch": False, "begin": 0, "end": 250}
STEPS = {"type": "MultiStepLR", "begin": 0, "end": 20, "by_epoch": True, "milestones": [12, 18], "gamma": 0.1}
LOAD, FLIP = [{"type": "LoadImageFromFile"}, {"type": "LoadAnnotations", "with_bbox": True}], {"type": "RandomFlip", "prob": 0.5}


def images(*steps: dict[str, Any], **dataset: Any) -> dict[str, Any]:
    return {"batch_size": 32, "dataset": {"type": "CocoDataset", "pipeline": [*LOAD, *steps, FLIP, {"type": "PackDetInputs"}], **dataset}}


CONFIG: dict[str, Any] = {
    "optim_wrapper": {"type": "OptimWrapper", "optimizer": SGD, "clip_grad": {"max_norm": 10, "norm_type": 2}},
    "param_scheduler": [LINEAR, STEPS],
    "train_cfg": {"type": "EpochBasedTrainLoop", "max_epochs": 20, "val_interval": 2},
    "auto_scale_lr": {"enable": False, "base_batch_size": 32},
    "train_dataloader": images({"type": "Resize", "scale": [1024, 640], "keep_ratio": True}),
}
READ = Recipe(
    epochs=20,
    eval_every=2,
    batch=32,
    base_batch=32,
    lr=0.01,
    auto_scale_lr=True,
    optimizer="sgd",
    momentum=0.8,
    weight_decay=0.0005,
    schedule="steps",
    warm_up=250,
    milestones=(12, 18),
    clip=10,
    image_size=1024,
    short_side=640,
    augment="flip",
)
ADAMW = {"type": "AdamW", "lr": 0.0002}


def test_what_a_configuration_says_is_read() -> None:
    assert recipe_of(CONFIG) == (READ, [])


SAID: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    (
        "sizes",
        {"train_dataloader": images({"type": "RandomResize", "scale": [[1024, 500], [1024, 640]], "keep_ratio": True})},
        {"train_short_sides": (500, 516, 532, 548, 564, 580, 596, 612, 628, 640)},
    ),
    (
        "choice",
        {"train_dataloader": images({"type": "RandomChoiceResize", "scales": [[480, 1024], [640, 1024]], "keep_ratio": True})},
        {"train_short_sides": (480, 640)},
    ),
    (
        "square",
        {"train_dataloader": images({"type": "Resize", "scale": [512, 512], "keep_ratio": True})},
        {"image_size": 512, "short_side": None},
    ),
    ("not clipped", {"optim_wrapper": {"optimizer": SGD, "clip_grad": None}}, {"clip": 35.0}),
    (
        "adamw",
        {"optim_wrapper": {"optimizer": ADAMW, "clip_grad": {"max_norm": 0.1}}},
        {"optimizer": "adamw", "lr": 0.0002, "momentum": 0.9, "weight_decay": 0.01, "clip": 0.1},
    ),
    (
        "biases",
        {"optim_wrapper": {"optimizer": SGD, "paramwise_cfg": {"bias_lr_mult": 2.0, "bias_decay_mult": 0.0}}},
        {"bias_lr_factor": 2.0, "bias_decay_factor": 0.0, "clip": 35.0},
    ),
    ("forwards that add up", {"optim_wrapper": {**CONFIG["optim_wrapper"], "accumulative_counts": 2}}, {"accumulate": 2, "base_batch": 64}),
    (
        "repeated",
        {
            "train_dataloader": {
                "batch_size": 32,
                "dataset": {"type": "RepeatDataset", "times": 3, "dataset": CONFIG["train_dataloader"]["dataset"]},
            }
        },
        {"epochs": 60, "milestones": (36, 54), "eval_every": 6},
    ),
    (
        "iterations",
        {
            "train_cfg": {"type": "IterBasedTrainLoop", "max_iters": 9000, "val_interval": 1000},
            "param_scheduler": [LINEAR, {**STEPS, "by_epoch": False, "milestones": [6000, 8000]}],
        },
        {"iterations": 9000, "epochs": None, "milestones": (6000, 8000), "eval_every": 1000},
    ),
    ("no warm-up", {"param_scheduler": STEPS}, {"warm_up": 0}),
    ("average", {"custom_hooks": [{"type": "EMAHook", "momentum": 0.001}]}, {"ema": 0.999}),
]


@pytest.mark.parametrize(("change", "found"), [case[1:] for case in SAID], ids=[case[0] for case in SAID])
def test_what_else_a_configuration_may_say(change: dict[str, Any], found: dict[str, Any]) -> None:
    assert recipe_of({**CONFIG, **change}) == (replace(READ, **found), [])


OF_1X = "as of MMDetection's 1x schedule"
RATE_OF_1X = f"optimizer=sgd lr=0.02 momentum=0.9 weight_decay=0.0001 batch=16 accumulate=1 base_batch=16, {OF_1X}"
RATE = {"optimizer": "sgd", "lr": 0.02, "momentum": 0.9, "weight_decay": 1e-4, "batch": 16, "accumulate": 1, "base_batch": 16}
FOUR = {**CONFIG["train_dataloader"], "batch_size": 4}
ONE_GPU = "its train_dataloader has 4 a GPU: if it trains on one GPU, ask for --gpus 1"
MOSAIC = images({"type": "Mosaic"}, {"type": "Resize", "scale": [640, 640], "keep_ratio": True})
TOLD: list[tuple[dict[str, Any], dict[str, Any], list[str]]] = [
    (
        {"optim_wrapper": {"optimizer": {"type": "Lion", "lr": 1e-4}}},
        {**RATE, "clip": 35.0},
        [f"optim_wrapper.optimizer: Lion with lr 0.0001 cannot be done here, where SGD and AdamW can; {RATE_OF_1X}"],
    ),
    (
        {"train_dataloader": images({"type": "Resize", "scale_factor": 0.5})},
        {"image_size": 1333, "short_side": 800},
        [f"train_dataloader.dataset.pipeline: no Resize to a scale in pixels; image_size=1333 short_side=800, {OF_1X}"],
    ),
    (
        {"train_dataloader": MOSAIC, "val_dataloader": images({"type": "Resize", "scale": [416, 416], "keep_ratio": True})},
        {"image_size": 416, "short_side": None},
        ["train_dataloader: its training images get no Mosaic here"],
    ),
    (
        {"train_dataloader": FOUR},
        {},
        [f"lr 0.01 is taken to be for 32 images a step (auto_scale_lr.base_batch_size); {ONE_GPU}"],
    ),
    (
        {"auto_scale_lr": {"base_batch_size": 2}, "train_dataloader": FOUR},
        {},
        [
            "auto_scale_lr.base_batch_size: 2 are fewer than the 4 of one GPU; lr 0.01 is taken to be for 32 images a step, of 8 GPUs; "
            + ONE_GPU
        ],
    ),
    (
        {"auto_scale_lr": None, "train_dataloader": FOUR},
        {},
        [f"auto_scale_lr.base_batch_size: is missing; lr 0.01 is taken to be for 32 images a step, of 8 GPUs; {ONE_GPU}"],
    ),
    (
        {"train_cfg": {"max_epochs": 18, "val_interval": 2}},
        {"epochs": 18, "milestones": (12,)},
        ["param_scheduler: the run ends before the rate falls at 18; left out"],
    ),
    (
        {"train_cfg": {"max_epochs": 1}},
        {"epochs": 1, "eval_every": 1, "milestones": None},
        [
            "param_scheduler: the run ends before the rate falls at 12, 18; it never falls there; "
            "here it falls tenfold after 8/12 and 11/12 of the run"
        ],
    ),
    (
        {"param_scheduler": [{**LINEAR, "by_epoch": True, "end": 1}, STEPS]},
        {"warm_up": None},
        ["param_scheduler: a warm-up in epochs or of another form; the rate rises over 500 iterations here"],
    ),
    (
        {"param_scheduler": [LINEAR, {"type": "CosineAnnealingLR", "begin": 10, "T_max": 10}]},
        {"schedule": "one_cycle", "warm_up": None, "milestones": None},
        ["param_scheduler: for a cosine, the schedule is one_cycle here: up over 30 % of the run, then down"],
    ),
    (
        {"param_scheduler": []},
        {"warm_up": 0, "milestones": None},
        ["param_scheduler: has no MultiStepLR and no cosine; the rate falls tenfold after 8/12 and 11/12 of the run here"],
    ),
    (
        {"optim_wrapper": {**CONFIG["optim_wrapper"], "type": "AmpOptimWrapper", "paramwise_cfg": {"custom_keys": {"backbone": {}}}}},
        {},
        [
            "optim_wrapper.type: it is trained in mixed precision; here by request (recipe.precision fp16 or bf16)",
            "optim_wrapper.paramwise_cfg.custom_keys: rates of their own of backbone are not done here",
        ],
    ),
]


@pytest.mark.parametrize(("change", "found", "notes"), TOLD, ids=[notes[0].split(":")[0] for _, _, notes in TOLD])
def test_what_cannot_be_read_keeps_a_default_and_is_told(change: dict[str, Any], found: dict[str, Any], notes: list[str]) -> None:
    assert recipe_of({**CONFIG, **change}) == (replace(READ, **found), notes)


def test_a_configuration_of_a_model_alone_says_nothing() -> None:
    recipe, (note,) = recipe_of({"model": {"type": "RetinaNet"}})
    assert recipe is None
    assert note.startswith("it says nothing of a training")


NONSENSE: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    (
        {"optim_wrapper": {"optimizer": {**SGD, "lr": 100}}},
        {**RATE, "clip": 35.0},
        f"recipe.lr: 100 is not a number above 0 and at most 10.0; {RATE_OF_1X}",
    ),
    (
        {"optim_wrapper": {**CONFIG["optim_wrapper"], "optimizer": {**SGD, "weight_decay": 7}}},
        {"weight_decay": 1e-4},
        f"recipe.weight_decay: 7 is not a number from 0 to 1; weight_decay=0.0001, {OF_1X}",
    ),
    (
        {"train_cfg": {"max_epochs": 200_000, "val_interval": 2}},
        {"epochs": 12, "eval_every": 1, "milestones": None},
        f"recipe.epochs: 200000 is not a number above 0 and at most 100000.0 or null; epochs=12 eval_every=1, {OF_1X}",
    ),
    (
        {"train_cfg": {"max_iters": 0.5}},
        {"epochs": 12, "eval_every": 1, "milestones": None},
        f"recipe.iterations: 0.5 is not an integer from 1 to 10000000; epochs=12 eval_every=1, {OF_1X}",
    ),
    (
        {"param_scheduler": [LINEAR, {**STEPS, "milestones": [18, 12]}]},
        {"milestones": None},
        "recipe.milestones: [18, 12] does not rise; the rate falls after 8/12 and 11/12 of the run here",
    ),
    (
        {"train_dataloader": images({"type": "Resize", "scale": [9000, 640], "keep_ratio": True})},
        {"image_size": 1333, "short_side": 800},
        f"recipe.image_size: 9000 is not an integer from 32 to 4096; image_size=1333 short_side=800, {OF_1X}",
    ),
    (
        {"custom_hooks": [{"type": "EMAHook", "momentum": 3}]},
        {},
        f"recipe.ema: -2.0 is not a number between 0 and 1 or null (no average); none, {OF_1X}",
    ),
]


@pytest.mark.parametrize(("change", "found", "note"), NONSENSE, ids=[note.split(":")[0] for _, _, note in NONSENSE])
def test_a_field_that_does_not_fit_is_told_and_takes_no_other_with_it(change: dict[str, Any], found: dict[str, Any], note: str) -> None:
    recipe, notes = recipe_of({**CONFIG, **change, "auto_scale_lr": {"base_batch_size": 32}})
    assert recipe == replace(READ, **found)
    assert notes[-1] == note


def test_of_gpus_that_are_given_the_rate_is_for_their_images() -> None:
    one = {**CONFIG, "train_dataloader": FOUR}
    assert recipe_of(one, gpus=1) == (replace(READ, batch=4, base_batch=4), [])
    assert recipe_of({**one, "auto_scale_lr": None}, gpus=3) == (replace(READ, batch=12, base_batch=12), [])
    of_mmengine = {**one, "auto_scale_lr": {"enable": True, "base_batch_size": 32}}  # trains 4 images at 0.01 * 4 / 32
    assert recipe_of(of_mmengine, gpus=1) == (replace(READ, batch=4), [])
    unknown = {**CONFIG, "train_dataloader": {"dataset": FOUR["dataset"]}}
    assert recipe_of(unknown, gpus=1) == (
        READ,
        ["train_dataloader.batch_size: is missing, so that the images of --gpus are not known"],
    )
    adam = {**one, "optim_wrapper": {**CONFIG["optim_wrapper"], "optimizer": {"type": "Adam", "lr": 0.001}}}
    recipe, (_, note) = recipe_of(adam, gpus=1)
    assert recipe == replace(READ, **RATE)
    assert note == "--gpus: has no effect; the rate, and the images that it is for, are not the configuration's"


@pytest.mark.parametrize("name", [name for name, entry in BUILT_IN.items() if entry.training is not None])
def test_the_catalogue_says_of_a_detector_what_its_configuration_does(name: str) -> None:
    import mmdet

    recipe, _ = training_of(read_file(Path(mmdet.__file__).parent / ".mim" / "configs" / str(BUILT_IN[name].source)))
    assert recipe == BUILT_IN[name].training


def test_a_training_that_cannot_be_read_keeps_no_detector_out(tmp_path: Path) -> None:
    (tmp_path / "odd.py").write_text("train_cfg = dict(max_epochs=12)\nparam_scheduler = dict(type='MultiStepLR')\n")
    recipe, (note,) = training_of(read_file(tmp_path / "odd.py"))
    assert recipe is None
    assert note.startswith("its training cannot be read: KeyError: 'milestones'; without a pair")
