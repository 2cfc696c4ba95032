"""How MMDetection trains the detectors of its zoo, and what follows from it where no pair says how a student is trained.

`detectors.recipe_of` reads the same off a configuration; a test holds the catalogue to it.
"""

from dataclasses import replace

from detkds_core.catalogue.entry import DetectorEntry
from detkds_core.catalogue.recipe import Recipe

# SGD, warm-up over 500 iterations, a tenth of the rate after two thirds and eleven twelfths. MMDetection clips no gradient there; 35 is far
# above that of a detector's own loss, and holds a policy's.
ONE_X = Recipe(
    epochs=12,
    batch=16,
    lr=0.02,
    auto_scale_lr=True,
    optimizer="sgd",
    weight_decay=1e-4,
    schedule="steps",
    warm_up=500,
    milestones=(8, 11),
    image_size=1333,
    short_side=800,
    augment="flip",
    clip=35.0,
    eval_every=1,
)
TWO_X = replace(ONE_X, epochs=24, milestones=(16, 22))
THREE_X = replace(ONE_X, epochs=36, milestones=(27, 33), eval_every=3)  # each of its 12 epochs shows an image three times
DENSE = replace(ONE_X, lr=0.01)  # of most one-stage detectors
DENSE_2X = replace(TWO_X, lr=0.01)
ADAMW = replace(ONE_X, optimizer="adamw", lr=1e-4)
FCOS = replace(DENSE, bias_lr_factor=2.0, bias_decay_factor=0.0)


def between(low: int, high: int) -> tuple[int, ...]:
    """Shorter sides for multi-scale training: MMDetection draws any number of pixels, here it is one of every sixteenth."""
    return (*range(low, high, 16), high)


# On 8 GPUs: 256 images a step of RTMDet (its auto_scale_lr says 16, which one GPU's 32 exceed), 64 of YOLOX. Mosaic, MixUp and colours are
# not done here; a cosine is `one_cycle`.
RTMDET = Recipe(
    epochs=300,
    batch=256,
    base_batch=256,
    lr=4e-3,
    auto_scale_lr=True,
    weight_decay=0.05,
    image_size=640,
    ema=0.9998,
    eval_every=10,
)
YOLOX = replace(RTMDET, batch=64, base_batch=64, lr=0.01, optimizer="sgd", weight_decay=5e-4, bias_decay_factor=0.0, ema=0.9999)
# A tenth of the rate of a DETR's backbone is not known here.
DETR = replace(ADAMW, warm_up=0, clip=0.1, train_short_sides=tuple(range(480, 801, 32)))

PROXY_STEPS = 1467  # the paper's: an epoch of 23,457 images, a fifth of COCO's, 16 a step
SMALL = Recipe()  # of the small detectors, on small images


def base_recipe(student: DetectorEntry, images: int, schedule: str) -> tuple[Recipe, str]:
    """How a student is trained where no pair says it, and where that is from: its configuration, or nowhere.

    schedule: "full", or "proxy" for a candidate of a search: PROXY_STEPS steps, or all where these are fewer. images: of the training.
    A step is one forward, as it was published; `Recipe.in_forwards` makes it one that fits, once it is known on how many devices.
    """
    full = student.training or SMALL
    known = student.training is not None
    if known:
        source = f"MMDetection's {student.source}" if student.source else f"the configuration of {student.name}"
    else:
        source = "the defaults for small detectors"
    if schedule == "full" or full.resolved(images)[0].iterations <= PROXY_STEPS:
        return full, source
    proxy = replace(full, iterations=PROXY_STEPS, epochs=None, milestones=None, eval_every=None)
    return proxy, f"{source}, shortened for a search"
