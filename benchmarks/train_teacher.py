"""Make a built-in teacher: `python benchmarks/train_teacher.py --pair digits_gfl`; its recipe, seed and AP travel in the file."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "0")

from detkds_core.training.teacher import main

if __name__ == "__main__":
    main()
