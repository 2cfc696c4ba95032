"""`detkds convert`: a PyTorch checkpoint becomes what the service takes as a teacher."""

import json
import re

import pytest
import torch
from safetensors import safe_open

from detkds_client.convert import ConvertError, convert


def saved(path, classes=None):
    """A checkpoint as MMDetection leaves it: tied tensors, a view of a larger one, class names in its meta."""
    weight = torch.arange(6.0).reshape(2, 3)
    state = {"head.weight": weight, "head.tied": weight, "neck.view": torch.zeros(100)[:4]}
    meta = {"dataset_meta": {"classes": classes}} if classes else {}
    torch.save({"state_dict": state, "meta": meta}, path)
    return path


def test_the_weights_and_the_class_names_come_along(detkds, tmp_path, service, wanted):
    target = service.roots / "converted.safetensors"
    done = detkds("convert", str(saved(tmp_path / "teacher.pth", ("circle", "square"))), str(target))
    assert done.returncode == 0, done.stderr
    assert "2 classes (circle, square)" in done.stdout
    with safe_open(target, framework="pt") as file:
        assert json.loads(file.metadata()["classes"]) == ["circle", "square"]
        assert file.get_tensor("head.tied").tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
        assert file.get_tensor("neck.view").shape == (4,)
    teacher = {"detector": wanted["teacher"]["detector"], "checkpoint": str(target)}
    assert service.http.post("/searches", json={**wanted, "teacher": teacher}).status_code == 202


def test_class_names_must_be_known(tmp_path):
    source, target = saved(tmp_path / "bare.pth"), tmp_path / "bare.safetensors"
    with pytest.raises(ConvertError, match="--classes"):
        convert(source, target)
    assert not target.exists()
    assert convert(source, target, ("a", "b")) == ("a", "b")
    with safe_open(target, framework="pt") as file:
        assert json.loads(file.metadata()["classes"]) == ["a", "b"]


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConvertError, match=r"nowhere/teacher\.safetensors cannot be written: there is no folder .*nowhere; make it first$"):
        convert(saved(tmp_path / "teacher.pth", ("a",)), tmp_path / "nowhere" / "teacher.safetensors")


def test_a_file_that_is_there_is_written_over_only_when_asked(tmp_path):
    source, target = saved(tmp_path / "teacher.pth", ("a",)), tmp_path / "teacher.safetensors"
    target.write_text("precious")
    with pytest.raises(ConvertError, match=r"teacher\.safetensors is there already; choose another name, or write over it with --force"):
        convert(source, target)
    assert target.read_text() == "precious"
    assert convert(source, target, force=True) == ("a",)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before PyTorch 1.6"])
def test_a_file_that_is_cut_off_or_no_checkpoint_is_told_as_that(tmp_path, zipped):
    source, target = tmp_path / "teacher.pth", tmp_path / "teacher.safetensors"
    torch.save({"w": torch.ones(1000)}, source, _use_new_zipfile_serialization=zipped)
    whole = source.read_bytes()
    for length in (100, len(whole) - 200):
        source.write_bytes(whole[:length])
        with pytest.raises(ConvertError, match=r"teacher\.pth: is cut off, and its end is missing; copy or download it again$"):
            convert(source, target, ("a",))
    source.write_text("model = dict(type='RetinaNet')")
    with pytest.raises(ConvertError, match=r"teacher\.pth: is no PyTorch checkpoint; give the \.pth or \.pt file that a training saved"):
        convert(source, target, ("a",))
    source.write_bytes(b"")
    with pytest.raises(ConvertError, match=r"teacher\.pth: is empty$"):
        convert(source, target, ("a",))


def test_a_pickle_with_code_in_it_does_not_run(tmp_path):
    class Payload:
        def __reduce__(self):
            return open, (str(tmp_path / "ran"), "w")

    torch.save({"state_dict": {"weight": Payload()}}, tmp_path / "evil.pth")
    with pytest.raises(ConvertError, match="cannot be read as tensors only"):
        convert(tmp_path / "evil.pth", tmp_path / "evil.safetensors")
    assert not (tmp_path / "ran").exists()


def test_a_backbone_is_taken_from_a_classifier_or_a_detector_and_starts_a_student(detkds, tmp_path, service, wanted):
    classifier = {"conv1.weight": torch.ones(2), "layer1.0.conv1.weight": torch.ones(3), "fc.weight": torch.ones(4)}
    torch.save(classifier, tmp_path / "classifier.pth")
    detector = {f"backbone.{key}": value for key, value in classifier.items() if key != "fc.weight"}
    torch.save({**detector, "neck.a": torch.ones(1)}, tmp_path / "detector.pth")
    target = service.roots / "backbone.safetensors"
    for source in ("classifier.pth", "detector.pth"):
        done = detkds("convert", str(tmp_path / source), str(target), "--backbone", "--force")
        assert done.returncode == 0, done.stderr
        assert "a backbone; give it as a student's checkpoint" in done.stdout
        with safe_open(target, framework="pt") as file:
            assert set(file.keys()) == {"backbone.conv1.weight", "backbone.layer1.0.conv1.weight"}
            assert file.metadata() == {"part": "backbone"}
    student = {"detector": wanted["student"]["detector"], "checkpoint": str(target)}
    assert service.http.post("/searches", json={**wanted, "student": student}).status_code == 202
    answer = service.http.post("/searches", json={**wanted, "teacher": {**wanted["teacher"], "checkpoint": str(target)}})
    assert "does not say which classes it knows" in answer.json()["detail"]
    torch.save({"fc.weight": torch.ones(1)}, tmp_path / "none.pth")
    with pytest.raises(ConvertError, match="no backbone is among the 1 tensors"):
        convert(tmp_path / "none.pth", target, backbone=True, force=True)


def as_a_runner_leaves_it(path, classes):
    """A training's whole state in MMEngine's layout: its record of losses is of a class of its own, its scores are NumPy's."""
    import numpy as np
    from mmengine.logging import HistoryBuffer

    history = HistoryBuffer([0.5, 0.25], [1, 1])
    state = {"state_dict": {"w": torch.ones(2)}, "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]}}
    hub = {"log_scalars": {"train/loss": history}, "runtime_info": {"best": np.float64(0.5)}, "resumed_keys": {"train/loss": True}}
    torch.save({**state, "message_hub": hub, "meta": {"dataset_meta": {"classes": classes}, "epoch": 1}}, path)
    return path


def test_a_training_s_file_is_converted_and_uploaded_as_it_is(detkds, tmp_path):
    source = as_a_runner_leaves_it(tmp_path / "epoch_1.pth", ("circle", "square"))
    done = detkds("convert", str(source), str(tmp_path / "teacher.safetensors"))
    assert (done.returncode, done.stderr) == (0, "")
    assert "2 classes (circle, square)" in done.stdout
    with safe_open(tmp_path / "teacher.safetensors", framework="pt") as file:
        assert list(file.keys()) == ["w"]
    done = detkds("checkpoints", "upload", str(source), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["classes"] == ["circle", "square"]


def test_an_exported_student_is_a_checkpoint_to_convert(tmp_path):
    from detkds_core.detectors.build import build_detector, save_student
    from detkds_core.detectors.checkpoints import load_weights

    torch.manual_seed(0)
    student, again = (build_detector("gfl_r18w8_fpn32", ("a", "b")) for _ in range(2))
    save_student(student, tmp_path, "student", ("a", "b"), {"detector": "gfl_r18w8_fpn32"})
    assert convert(tmp_path / "student.pth", tmp_path / "again.safetensors") == ("a", "b")
    load_weights(again, tmp_path / "again.safetensors")
    assert all(torch.equal(again.state_dict()[key], value) for key, value in student.state_dict().items())


def official_swin(state):
    """The weights of MMDetection's Swin as its authors publish them: other names, other orders where patches merge, a classifier's end."""
    official = {}
    for key, value in state.items():
        if re.match(r"norm\d", key):
            continue  # of a detector's outputs
        for ours, theirs in (
            ("stages", "layers"),
            ("attn.w_msa.", "attn."),
            ("ffn.layers.0.0.", "mlp.fc1."),
            ("ffn.layers.1.", "mlp.fc2."),
            ("patch_embed.projection", "patch_embed.proj"),
        ):
            key = key.replace(ours, theirs)
        if "downsample" in key:  # (rows, columns) of the four neighbours are counted the other way, before the channels
            four = value.reshape(*value.shape[:-1], -1, 4).transpose(-1, -2)
            value = four[..., [0, 2, 1, 3], :].reshape(value.shape)
        official[key] = value
    end = {"norm.weight": torch.ones(64), "head.weight": torch.ones(10, 64), "layers.0.blocks.1.attn_mask": torch.ones(1, 9, 9)}
    return {"model": {**official, **end}}


def official_pvt(state):
    """The weights of MMDetection's PVT as its authors publish them, a bare state_dict."""
    stages = {int(key.split(".")[1]) for key in state}
    absolute = any("pos_embed" in key for key in state)
    official = {"head.weight": torch.ones(10, 64), **({"cls_token": torch.ones(1, 1, 64)} if absolute else {})}
    for stage in stages:
        for key, value in state.items():
            _, of, part, rest = key.split(".", 3)
            if int(of) != stage:
                continue
            if part == "0":
                official[f"patch_embed{stage + 1}.{rest.replace('projection', 'proj')}"] = value
            elif part == "2":
                official[f"norm{stage + 1}.{rest}"] = value
            elif rest == "0.pos_embed":
                official[f"pos_embed{stage + 1}"] = value
            else:
                place, name = rest.split(".", 1)
                block = f"block{stage + 1}.{int(place) - absolute}."
                if "in_proj" in name:
                    kind = name.removeprefix("attn.attn.in_proj_")
                    official[f"{block}attn.q.{kind}"], official[f"{block}attn.kv.{kind}"] = value.split(
                        [len(value) // 3, len(value) // 3 * 2]
                    )
                    continue
                if re.fullmatch(r"ffn\.layers\.[034]\.weight", name):
                    value = value[..., 0, 0]
                for ours, theirs in (
                    ("attn.attn.out_proj", "attn.proj"),
                    ("ffn.layers.0", "mlp.fc1"),
                    ("ffn.layers.1", "mlp.dwconv.dwconv"),
                    ("ffn.layers.3", "mlp.fc2"),
                    ("ffn.layers.4", "mlp.fc2"),
                ):
                    name = name.replace(ours, theirs)
                official[block + name] = value
    return official


@pytest.mark.parametrize("kind", ["swin", "pvt", "pvt_v2"])
def test_a_backbone_as_its_authors_publish_it_computes_the_same(tmp_path, kind):
    from detkds_core.detectors.checkpoints import load_student
    from detkds_core.detectors.runtime import prepare_mmdet

    prepare_mmdet()
    from mmdet.models.backbones import PyramidVisionTransformer, PyramidVisionTransformerV2, SwinTransformer

    def student():
        holder = torch.nn.Module()
        if kind == "swin":
            holder.backbone = SwinTransformer(embed_dims=8, depths=(2, 2, 1, 1), num_heads=(1, 2, 2, 4), window_size=3)
        else:
            made, more = (PyramidVisionTransformer, {"pretrain_img_size": 64}) if kind == "pvt" else (PyramidVisionTransformerV2, {})
            holder.backbone = made(embed_dims=8, num_layers=[2, 1, 1, 1], num_heads=[1, 2, 4, 8], **more)
        return holder.eval()

    torch.manual_seed(0)
    given, filled = student(), student()
    with torch.no_grad():
        for key, parameter in given.backbone.named_parameters():
            if not (kind == "swin" and re.match(r"norm\d", key)):  # which no classifier has
                parameter.normal_(std=0.3)
    official = official_swin if kind == "swin" else official_pvt
    torch.save(official(given.backbone.state_dict()), tmp_path / "official.pth")
    assert convert(tmp_path / "official.pth", tmp_path / "backbone.safetensors", backbone=True) == ()
    whole, notes = load_student(filled, tmp_path / "backbone.safetensors")
    assert not whole
    assert len(notes) == (2 if kind == "swin" else 0)  # unused: the classifier's norm and a mask; missing: the norms of outputs
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected, found = given.backbone(image), filled.backbone(image)
    assert len(found) == 4
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_what_only_looks_like_a_published_backbone_is_refused(tmp_path):
    torch.save({"block1.0.attn.q.weight": torch.ones(2, 2)}, tmp_path / "half.pth")
    with pytest.raises(ConvertError, match=r"looks like a PVT Transformer, but is none: 'block1\.0\.attn\.kv\.weight'"):
        convert(tmp_path / "half.pth", tmp_path / "half.safetensors", backbone=True)
    torch.save({"net": {"conv1.weight": torch.ones(2)}}, tmp_path / "deeper.pth")
    with pytest.raises(ConvertError, match="'net' holds a dict, not a tensor; save the model's state_dict alone"):
        convert(tmp_path / "deeper.pth", tmp_path / "deeper.safetensors", backbone=True)
