"""Train a group of students side by side: the same batches, one teacher forward, numbers that do not depend on the company."""

import copy
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from detkds_core import distillers
from detkds_core.catalogue import DetectorEntry, Recipe, builtin_checkpoint, detector
from detkds_core.datasets import default_cache
from detkds_core.datasets.kept import TOKENS
from detkds_core.detectors.build import build_detector, inherit, inheritable, safe_channels_last, thaw
from detkds_core.detectors.checkpoints import CheckpointError, load_student, load_weights
from detkds_core.detectors.cross_head import head_tail
from detkds_core.detectors.pair import Levels, Student, Teacher, check_policy, make_adapters, match_levels
from detkds_core.detectors.tap import dense_head
from detkds_core.distillers import DistillerContext
from detkds_core.evaluation.predict import draws_masks
from detkds_core.losses.signals import OF_ROIS, Scene, Signals
from detkds_core.policy import Policy
from detkds_core.training import parallel
from detkds_core.training.batches import Batch, Batches, ahead
from detkds_core.training.learner import Learner, make_learner
from detkds_core.training.pull import BATCHES, Pull, balance, balanced_names, parts_of, pulls, undisturbed
from detkds_core.training.steps import in_precision, seed_step, study, total_loss, update
from detkds_core.training.tokens import cached_tokens, learn_tokens

Progress = Callable[[int, int], None]
TOKEN_SEED = 0  # tokens are the teacher's: one set for all seeds of its students


class DoesNotFitError(RuntimeError):
    """The first step of a training did not fit in the accelerator's memory; nothing has been learnt."""


class TrainingError(RuntimeError):
    """A training that could not end. kind: the failure kind of the job."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind


@dataclass(frozen=True)
class Start:
    """What all candidates of a measurement share: the frozen teacher, the student's first weights and the matched levels."""

    teacher: Teacher | None
    teacher_entry: DetectorEntry
    student_entry: DetectorEntry
    weights: Mapping[str, Tensor]
    classes: tuple[str, ...]
    levels: Levels
    device: torch.device
    train: Mapping[str, Any] | None = None  # the training images ({"annotations", "images"}), and the digest of their dataset
    dataset_digest: str = ""
    thawed: bool = False  # whether the student's backbone is drawn at random where MMDetection freezes some of a pretrained one
    notes: tuple[str, ...] = ()  # what has to be said of the student's checkpoint
    inherited: Mapping[str, int] | None = None  # `tensors` of the student's neck and head that are its teacher's, `of` how many


def default_device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def checkpoint_path(name: str) -> Path:
    """A checkpoint by its built-in name or its path."""
    return builtin_checkpoint(name) or Path(name)


def load_teacher(name: str, checkpoint: str, classes: Sequence[str], device: torch.device) -> nn.Module:
    model = build_detector(name, classes)
    load_weights(model, checkpoint_path(checkpoint))
    return model.to(device).eval()


def prepare(spec: Mapping[str, Any], seed: int, device: torch.device | None = None) -> Start:
    """Build what a job's specification names: load the teacher, draw the student's weights from `seed`, inherit if asked."""
    device = device or default_device()
    classes = tuple(spec["dataset"]["classes"])
    teacher_entry, student_entry = detector(spec["teacher"]["detector"]), detector(spec["student"]["detector"])
    levels = match_levels(teacher_entry, student_entry, bool(spec.get("resize")))
    with _naming("teacher", teacher_entry):
        teacher = load_teacher(teacher_entry.name, spec["teacher"]["checkpoint"], classes, device)
    torch.manual_seed(seed)
    student = build_detector(student_entry.name, classes)
    checkpoint = spec["student"].get("checkpoint")
    with _naming("student", student_entry):
        whole, notes = load_student(student, checkpoint_path(checkpoint)) if checkpoint else (False, [])
    inherited = None
    if not whole and spec.get("inherit", True):
        inherited = {"tensors": len(inherit(student, teacher.cpu())), "of": inheritable(student)}
        teacher.to(device)
    weights = {key: value.clone() for key, value in student.state_dict().items()}
    frozen = Teacher(teacher, levels.teacher, levels.strides)
    dataset = spec["dataset"]
    digest = dataset.get("digest", "")
    thawed = not checkpoint and thaw(student)
    return Start(
        frozen, teacher_entry, student_entry, weights, classes, levels, device, dataset["train"], digest, thawed, tuple(notes), inherited
    )


@contextmanager
def _naming(role: str, entry: DetectorEntry) -> Iterator[None]:
    """Let a checkpoint that cannot be used say whose it was to be."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{role}.checkpoint: {error}; {role}.detector says {entry.name}, and its weights are wanted") from error


def start_warnings(start: Start) -> list[str]:
    """What has to be said of a student's first weights."""
    warnings = list(start.notes)
    if start.thawed:
        warnings.append(
            f"the backbone of {start.student_entry.name} begins with random weights, where MMDetection begins with pretrained ones; all of "
            "it is trained, for which published schedules are short: give a student.checkpoint (detkds convert --backbone)"
        )
    if start.inherited and start.inherited["of"] and not start.inherited["tensors"]:  # few are all that some pairs have in common
        warnings.append(
            f"{start.student_entry.name} inherits nothing from {start.teacher_entry.name}: none of the {start.inherited['of']} tensors of "
            "its neck and head fits, and all of them begin at random"
        )
    return warnings


def new_learner(
    start: Start,
    policy: Policy,
    recipe: Recipe,
    seed: int,
    on_token_step: Progress | None = None,
    tokens: Mapping[str, Tensor] | None = None,
) -> Learner:
    """A learner at the common start. Raises PairError when the pair cannot exchange what the policy asks for.

    tokens: MasKD's, of an earlier attempt at the same training; on_token_step: told how far the learning of them is where there are none.
    """
    check_policy(policy, start.teacher_entry, start.student_entry, resize=bool(start.levels.strides))
    torch.manual_seed(seed)
    model = build_detector(start.student_entry.name, start.classes)
    model.load_state_dict(start.weights)
    if start.thawed:
        thaw(model)
    torch.manual_seed(seed + 1)
    adapters = make_adapters(start.teacher_entry, start.student_entry, len(start.levels.student))
    model.to(start.device).train()
    if adapters is not None:
        adapters.to(start.device)
    student = Student(model, start.levels.student, adapters)
    if tokens is None:
        tokens = receptive_tokens(start, policy, recipe, on_token_step)
    return make_learner(student, policy, recipe, distillers.build(policy, distiller_context(start, policy, seed, tokens)))


def distiller_context(start: Start, policy: Policy, seed: int, tokens: Mapping[str, Tensor] | None) -> DistillerContext:
    """What a policy's distillers are built from."""
    if not policy.distillers or start.teacher is None:
        return DistillerContext((), ())
    teacher, student = start.teacher_entry.channels, start.student_entry.channels
    channels = (teacher,) * len(start.levels.teacher)  # of the student's features too, once adapted
    return DistillerContext(
        channels,
        channels,
        tower_channels=None if student == teacher else (student, teacher),
        head_tail=head_tail(dense_head(start.teacher.model), start.levels.teacher),
        tokens=tokens,
        seed=seed + 2,
        device=start.device,
    )


def receptive_tokens(start: Start, policy: Policy, recipe: Recipe, on_step: Progress | None = None) -> Mapping[str, Tensor] | None:
    """The tokens of the policy's MasKD, which belong to the teacher and the dataset, whatever student they serve; None without MasKD.

    They are learned here, on the teacher, unless they are kept from before. Several processes learn the same tokens from the same batches
    at once.
    """
    wanted = distillers.token_settings(policy)
    if wanted is None or wanted[1] == 0 or start.teacher is None or start.train is None:
        return None
    (count, steps), teacher = wanted, start.teacher
    batches = Batches(dict(start.train), recipe, TOKEN_SEED, masks=draws_masks(teacher.model))

    def inputs(step: int) -> tuple[Tensor, list[Any]]:
        return model_inputs(teacher.model.data_preprocessor, batches[step], start.device)

    seen = {name: getattr(recipe, name) for name in ("batch", "image_size", "short_side", "train_short_sides", "augment", "train_images")}
    facts = {
        "teacher": weights_digest(teacher.model),
        "dataset": start.dataset_digest,
        "levels": list(teacher.levels),
        "tokens": count,
        "steps": steps,
        "seed": TOKEN_SEED,
        "recipe": seen,
    }
    channels = [start.teacher_entry.channels] * len(teacher.levels)
    parallel.meet()  # else one might find the file that another has just written, which waits for it in a loss of MMDetection
    return cached_tokens(
        default_cache() / TOKENS,
        facts,
        lambda: learn_tokens(teacher.model, teacher.levels, channels, inputs, tokens=count, steps=steps, seed=TOKEN_SEED, report=on_step),
    )


def batches_for(learner: Learner, split: Mapping[str, Any], recipe: Recipe, seed: int) -> Batches:
    """This process's share of the training images; with masks for a student that learns from them."""
    masks = draws_masks(learner.student.model)
    return Batches(dict(split), recipe, seed, masks=masks, rank=parallel.rank(), devices=parallel.devices())


def train(
    learners: Sequence[Learner],
    start: Start,
    batches: Batches,
    *,
    first_step: int = 0,
    last_step: int | None = None,
    on_step: Progress | None = None,
) -> None:
    """Train every learner from `first_step` to before `last_step`, or to the end of the recipe. One that fails leaves the others alone.

    The weights of `balanced` terms and distillers that have none yet are found first (`balance_weights`).

    Among several processes each takes its share of every batch, and gradients are averaged. Where losses are means over images and no
    normalisation layer learns statistics, the weights are those of one process up to the order of sums. What differs otherwise:
    - batch normalisation in training sees the local share only, and the first process's statistics are kept;
    - images are padded to the largest of the local share;
    - losses over a number of boxes are normalised over all processes only where MMDetection does so itself (its `reduce_mean`: FCOS,
      GFL, ATSS, the last two by 1 at least a process), elsewhere (RetinaNet, RoI heads) by the local number;
    - a policy's terms see the local share: what compares images with one another (`norm_N`) or averages over boxes sees fewer of them;
    - random draws (samplers, masks, dropout) are each process's own.

    Raises DoesNotFitError when the first step needs more memory than the accelerator has.
    """
    recipe, parts = batches.recipe, batches.recipe.accumulate
    preprocess = learners[0].student.model.data_preprocessor
    fast = all(safe_channels_last(learner.student.model) for learner in learners)
    with fitting():
        balance_weights(learners, start, batches)
    threads = min(8, os.cpu_count() or 1) if start.device.type == "cuda" else 0  # on a CPU they would take the time of training
    end = recipe.iterations if last_step is None else last_step
    coming = ahead(batches, first_step * parts, end * parts, threads=threads)
    for step in range(first_step, end):
        alive = [learner for learner in learners if learner.failure is None]
        if not alive:
            return
        with fitting(first=step == first_step):
            for part in range(parts):
                batch = next(coming)
                inputs, samples, scene = shown(start, preprocess, batches, batch, step, part, fast)
                needs = frozenset().union(*(learner.needs_at(step, recipe.iterations) for learner in alive))
                with in_precision(recipe, start.device):
                    said = teacher_signals(start, preprocess, batch, inputs, needs) if needs else Signals(features=())
                for learner in alive:
                    study(learner, inputs, copy.deepcopy(samples), said, scene, recipe, start.teacher, part)
                    if part == parts - 1:
                        update(learner, step, recipe)
        if on_step is not None:
            on_step(step + 1, recipe.iterations)


@contextmanager
def fitting(first: bool = True) -> Iterator[None]:
    """Say of what does not fit in memory before anything is learnt that it does not."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        if not first:
            raise
        raise DoesNotFitError(str(error).splitlines()[0]) from error


def shown(
    start: Start, preprocess: nn.Module, batches: Batches, batch: Batch, step: int, part: int, fast: bool
) -> tuple[Tensor, list[Any], Scene]:
    """What a student sees of a batch: its inputs (B, 3, H, W), MMDetection's samples, and the scene of this part of a step.

    fast: whether inputs are channels last; a convolution takes the format of its input even if its weights have another.
    """
    inputs, samples = model_inputs(preprocess, batch, start.device)
    inputs = inputs.contiguous(memory_format=torch.channels_last if fast else torch.contiguous_format)
    scene = Scene(
        boxes=tuple(sample.gt_instances.bboxes for sample in samples),
        batch_shape=tuple(inputs.shape[-2:]),
        step=step,
        seed=batches.seed,
        place=part * batches.recipe.batch + batches.share.start,
        total_steps=batches.recipe.iterations,
    )
    return inputs, samples, scene


@dataclass(frozen=True)
class View:
    """A batch as a student and its teacher see it where a training starts, with the graph of the student's forward."""

    inputs: Tensor
    samples: list[Any]
    scene: Scene
    task: Tensor
    signals: Signals
    said: Signals


def view(start: Start, student: Student, batches: Batches, index: int, needs: frozenset[str]) -> View:
    """One forward of both on the batch of an index, as in the training; to be used within `undisturbed`."""
    preprocess, batch = student.model.data_preprocessor, batches[index]
    inputs, samples, scene = shown(start, preprocess, batches, batch, index, 0, safe_channels_last(student.model))
    seed_step(scene.seed, scene.step, scene.place)
    with in_precision(batches.recipe, start.device):
        said = teacher_signals(start, preprocess, batch, inputs, needs) if needs else Signals(features=())
        task, signals = student.losses(inputs, copy.deepcopy(samples), needs)
        if signals.rois is not None and start.teacher is not None and needs & OF_ROIS:
            said = replace(said, rois=start.teacher.regard(signals.rois, needs))
    return View(inputs, samples, scene, total_loss(task), signals, said)


def balance_weights(learners: Sequence[Learner], start: Start, batches: Batches) -> None:
    """Turn the ratio of each `balanced` term and distiller without a weight into one, where its learner stands; nothing else is changed.

    The factor, kept in `scales`, makes its gradient on backbone and neck as long as the task's, over the mean of the first two batches.
    Learners that stand at the same weights share a forward. What has no gradient there ends its learner with a failure.
    """
    waiting = [learner for learner in learners if learner.failure is None and _without_weight(learner)]
    while waiting:
        first = waiting[0]
        alike = [learner for learner in waiting if learner is first or _same_weights(learner, first)]
        waiting = [learner for learner in waiting if not any(learner is one for one in alike)]
        parts = [parts_of(learner.policy, all_terms=False) for learner in alike]
        modules = [{one.name: own for one, own in zip(it.policy.distillers, it.distillers, strict=True)} for it in alike]
        found: list[list[Pull]] = [[] for _ in alike]
        needs = frozenset().union(*(learner.needs for learner in alike))
        with undisturbed(first.student.model):
            for index in range(BATCHES):
                seen = view(start, first.student, batches, index, needs)
                wanted = [[part for _, part in one] for one in parts]
                half = batches.recipe.precision == "fp16"
                pulled = pulls(first.student, seen.task, seen.signals, seen.said, seen.scene, wanted, half=half, modules=modules)
                for pull, own in zip(pulled, found, strict=True):
                    own.append(pull)
        for learner, one, own in zip(alike, parts, found, strict=True):
            learner.scales |= balance(one, own)
            fail_unbalanced(learner, own)


def fail_unbalanced(learner: Learner, pulled: Sequence[Pull]) -> None:
    """End a learner one of whose terms or distillers got no weight."""
    if missing := _without_weight(learner):
        why = next((pull.error for pull in pulled if pull.error), "it has no gradient on the student, or one that is not finite")
        learner.failure = {"kind": "bad_data", "detail": f"{missing[0]} cannot be balanced with the task: {why}"}


def _without_weight(learner: Learner) -> list[str]:
    return [name for name in balanced_names(learner.policy) if name not in learner.scales]


def _same_weights(a: Learner, b: Learner) -> bool:
    """Whether two learners' detectors and adapters hold the same numbers."""
    for one, other in ((a.student.model, b.student.model), (a.student.adapters, b.student.adapters)):
        if (one is None) != (other is None):
            return False
        if one is not None and other is not None:
            ours, theirs = one.state_dict(), other.state_dict()
            if ours.keys() != theirs.keys() or not all(torch.equal(value, theirs[name]) for name, value in ours.items()):
                return False
    return True


def teacher_signals(start: Start, student_preprocess: nn.Module, batch: Batch, inputs: Tensor, needs: frozenset[str]) -> Signals:
    """The teacher's signals on the same images, normalised its own way when it differs from the student's."""
    assert start.teacher is not None
    own = start.teacher.model.data_preprocessor
    if _same_normalisation(own, student_preprocess):
        return start.teacher.signals(inputs, needs)
    height, width = inputs.shape[-2:]
    theirs, _ = model_inputs(own, batch, start.device)
    missing = (max(0, height - theirs.shape[-2]), max(0, width - theirs.shape[-1]))
    signals = start.teacher.signals(nn.functional.pad(theirs, (0, missing[1], 0, missing[0])), needs)
    if theirs.shape[-2] <= height and theirs.shape[-1] <= width:
        return signals
    strides = start.teacher.strides or tuple(start.teacher_entry.strides[level] for level in start.levels.teacher)
    return cut_to(signals, (height, width), strides)


def cut_to(signals: Signals, shape: tuple[int, int], strides: Sequence[int]) -> Signals:
    """The maps of a teacher whose images were filled up further than the student's, as far as these reach (height, width in pixels)."""

    def cut(maps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(
            x[..., : -(-shape[0] // stride), : -(-shape[1] // stride)].contiguous() for x, stride in zip(maps, strides, strict=True)
        )

    return replace(signals, features=cut(signals.features), logits=cut(signals.logits) if signals.logits else ())


def model_inputs(preprocess: nn.Module, batch: Batch, device: torch.device) -> tuple[Tensor, list[Any]]:
    """Normalise and pad a batch: inputs (B, 3, H, W) and MMDetection's samples with ground truth."""
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData

    samples = []
    for index, (image, boxes, labels) in enumerate(zip(batch.images, batch.boxes, batch.labels, strict=True)):
        shape = tuple(image.shape[-2:])
        sample = DetDataSample(metainfo={"ori_shape": shape, "img_shape": shape, "scale_factor": (1.0, 1.0)})
        sample.gt_instances = InstanceData(bboxes=boxes.to(device), labels=labels.to(device))
        if batch.masks:
            sample.gt_instances.masks = BitmapMasks(batch.masks[index], *shape)
        sample.ignored_instances = InstanceData(bboxes=boxes.new_zeros((0, 4)).to(device), labels=labels.new_zeros((0,)).to(device))
        samples.append(sample)
    images = [image.pin_memory() if device.type == "cuda" else image for image in batch.images]  # else the copy waits for the device
    data = preprocess({"inputs": [image.to(device, non_blocking=True) for image in images], "data_samples": samples}, True)
    return data["inputs"], data["data_samples"]


def _same_normalisation(a: nn.Module, b: nn.Module) -> bool:
    def facts(preprocess: nn.Module) -> tuple[Any, ...]:
        return (
            *(value.flatten().tolist() for name in ("mean", "std") if (value := getattr(preprocess, name, None)) is not None),
            preprocess._channel_conversion,
            preprocess.pad_size_divisor,
        )

    return facts(a) == facts(b)


def weights_digest(model: nn.Module) -> str:
    """SHA-256 over names and bytes of the weights, for tests and evidence."""
    return state_digest(model.state_dict())


def state_digest(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over names and bytes of a detector's state."""
    digest = hashlib.sha256()
    for key, value in state.items():
        digest.update(json.dumps([key, list(value.shape)]).encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
