"""A trainer that trains nothing: AP from a hash of policy and seed, the same on every machine, with the contract of the real one.

    python stand_in_trainer.py SPEC OUT_DIR

STAND_IN_SECONDS: how long one candidate takes (default 0.05). Each start appends "job attempt pid" to STAND_IN_STARTS, when that is set.
"""

import hashlib
import json
import os
import sys
import time
from pathlib import Path


def ap_of(policy: object, seed: int, kind: str) -> float:
    """AP in percent, 20 to 40: mostly the policy's, a little the seed's."""
    text = json.dumps(policy, sort_keys=True)
    by_policy = int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) / 0xFFFFFFFF
    by_seed = int(hashlib.sha256(f"{text} {seed} {kind}".encode()).hexdigest()[:8], 16) / 0xFFFFFFFF
    return round(20 + 19 * by_policy + by_seed, 4)


def metrics(policy: object, seed: int, kind: str) -> dict[str, float | int]:
    ap = ap_of(policy, seed, kind)
    return {"ap": ap, "ap50": round(ap * 1.6, 4), "ap75": round(ap * 0.9, 4), "images": 100}


def main() -> None:
    spec_path, out = Path(sys.argv[1]), Path(sys.argv[2])
    spec = json.loads(spec_path.read_text())
    if starts := os.environ.get("STAND_IN_STARTS"):
        with open(starts, "a") as file:
            file.write(f"{out.parent.name} {out.name} {os.getpid()}\n")
    seconds = float(os.environ.get("STAND_IN_SECONDS", "0.05"))
    measured = []
    best = None
    policies = spec.get("candidates") or [{"index": 0, "policy": spec["policy"]}]
    for done, candidate in enumerate(policies):
        print(json.dumps({"event": "progress", "done": done, "total": len(policies), "message": "measure", "best_ap": best}), flush=True)
        time.sleep(seconds)
        values = metrics(candidate["policy"], spec["seed"], f"{spec['kind']} {spec.get('rung')}")
        best = max(best or 0.0, values["ap"])
        if spec["kind"] == "confirm":
            values["resampled_ap"] = [values["ap"] + by for by in (-0.5, 0.0, 0.5)]
        measured.append({"index": candidate["index"], **values, "iterations": 1, "seconds": seconds, "failure": None})
    environment = {"trainer": "stand-in"}
    if spec["kind"] == "distill":
        checkpoint = b"a student"
        for name in ("student.safetensors", "student.pth", "student_config.py"):
            (out / name).write_bytes(checkpoint)
        (out / "detections.json").write_text("[]")
        result = {
            "checkpoint": "student.safetensors",
            "checkpoint_pth": "student.pth",
            "config": "student_config.py",
            "sha256": hashlib.sha256(checkpoint).hexdigest(),
            "student": {**metrics(spec["policy"], spec["seed"], "distill"), "parameters": 1000},
            "teacher": {"ap": 50.0, "ap50": 70.0, "ap75": 55.0, "parameters": 9000, "images": 100},
            "curve": [[1, 1.0]],
            "detections": "detections.json",
            "seconds": seconds,
            "environment": environment,
        }
    else:
        result = {"candidates": measured, "environment": environment}
    (out / "result.json.part").write_text(json.dumps(result))
    (out / "result.json.part").replace(out / "result.json")


if __name__ == "__main__":
    main()
