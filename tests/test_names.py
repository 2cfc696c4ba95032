"""What a mistyped name is answered with, and how numbers of things are said."""

from detkds_core.names import counted, meant

KNOWN = ("digits_gfl", "digits_gfl_fcos", "trees_gfl")


def test_names_that_are_alike_are_offered_and_else_all():
    assert meant("digits_glf", KNOWN) == "did you mean digits_gfl or digits_gfl_fcos?"
    assert meant("trees", KNOWN) == "did you mean trees_gfl?"
    assert meant("coco", KNOWN) == "one of digits_gfl, digits_gfl_fcos, trees_gfl"


def test_one_thing_is_no_several():
    assert (counted(1, "iteration"), counted(1500, "iteration"), counted(0, "class", "classes")) == (
        "1 iteration",
        "1,500 iterations",
        "0 classes",
    )
