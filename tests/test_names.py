"""What a mistyped name is answered with."""

from detkds_core.names import meant

KNOWN = ("digits_gfl", "digits_gfl_fcos", "trees_gfl")


def test_names_that_are_alike_are_offered_and_else_all():
    assert meant("digits_glf", KNOWN) == "did you mean digits_gfl or digits_gfl_fcos?"
    assert meant("trees", KNOWN) == "did you mean trees_gfl?"
    assert meant("coco", KNOWN) == "one of digits_gfl, digits_gfl_fcos, trees_gfl"
