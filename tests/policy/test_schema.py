"""Policies as JSON: what is written reads back, what is wrong is named, and the schema says the same."""

import json

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detkds_core.policy import Distiller, Policy, PolicyError, Term, from_json, json_schema, to_json

from .strategies import policies

SCHEMA = jsonschema.Draft202012Validator(json_schema())
PKD = {"knowledge": "global", "transforms": ["none", "none", "standardize"], "distance": "l2", "weight": 5}


def errors_of(data: object) -> list[tuple[str, str]]:
    with pytest.raises(PolicyError) as caught:
        from_json(data)
    return caught.value.errors


def test_only_options_that_differ_are_written() -> None:
    policy = Policy(
        (
            Term("global", ("none", "none", "standardize"), "l2", 5.0),
            Term("localization", ("none",), "kl_edges", 0.25, temperature=10.0, warm_up=500),
        )
    )
    assert to_json(policy) == {
        "terms": [
            {"knowledge": "global", "transforms": ["none", "none", "standardize"], "distance": "l2", "weight": 5.0},
            {
                "knowledge": "localization",
                "transforms": ["none"],
                "distance": "kl_edges",
                "weight": 0.25,
                "temperature": 10.0,
                "warm_up": 500,
            },
        ]
    }


def test_distillers_are_written_where_there_are_any() -> None:
    policy = Policy((), (Distiller("fgd", (("alpha", 0.0005),)), Distiller("mgd")))
    data = {"terms": [], "distillers": [{"name": "fgd", "settings": {"alpha": 0.0005}}, {"name": "mgd"}]}
    assert to_json(policy) == data
    assert from_json(data) == policy
    assert to_json(Policy(())) == {"terms": []}


def test_a_distillers_weight_and_balance_are_written_where_they_differ() -> None:
    policy = Policy((), (Distiller("fgd", (("alpha", 0.0005),), 0.3, balanced=True), Distiller("mgd", weight=2.0)))
    data = {
        "terms": [],
        "distillers": [{"name": "fgd", "settings": {"alpha": 0.0005}, "weight": 0.3, "balanced": True}, {"name": "mgd", "weight": 2.0}],
    }
    assert to_json(policy) == data
    assert from_json(data) == policy
    (whole,) = from_json({"terms": [], "distillers": [{"name": "mgd", "weight": 2, "balanced": False}]}).distillers
    assert whole == policy.distillers[1]
    assert isinstance(whole.weight, float)


def test_a_distillers_schedule_is_written_where_it_differs() -> None:
    policy = Policy((), (Distiller("fgd", warm_up=500, stop=0.5, decay=0.0), Distiller("mgd")))
    data = {"terms": [], "distillers": [{"name": "fgd", "warm_up": 500, "stop": 0.5, "decay": 0.0}, {"name": "mgd"}]}
    assert to_json(policy) == data
    assert from_json(data) == policy
    (whole,) = from_json({"terms": [], "distillers": [{"name": "fgd", "stop": 1, "decay": 0}]}).distillers
    assert [type(number) for number in (whole.warm_up, whole.stop, whole.decay)] == [int, float, float]


def test_a_setting_is_read_under_the_name_that_it_had() -> None:
    row = {"name": "maskd", "settings": {"warm_up": 500, "tokens": 4}, "warm_up": 7}
    (maskd,) = from_json({"terms": [], "distillers": [row]}).distillers
    assert maskd == Distiller("maskd", (("masks_from", 500.0), ("tokens", 4.0)), warm_up=7)
    with pytest.raises(PolicyError, match="not a setting of 'fgd'"):
        from_json({"terms": [], "distillers": [{"name": "fgd", "settings": {"warm_up": 500}}]})


def test_a_setting_is_a_float_whatever_is_written() -> None:
    (distiller,) = from_json({"terms": [], "distillers": [{"name": "fgd", "settings": {"alpha": 0}}]}).distillers
    assert distiller == Distiller("fgd", (("alpha", 0.0),))
    assert isinstance(distiller.settings[0][1], float)


def test_a_whole_number_is_a_weight() -> None:
    (term,) = from_json({"terms": [PKD]}).terms
    assert term == Term("global", ("none", "none", "standardize"), "l2", 5.0)
    assert isinstance(term.weight, float)


@given(policies())
@settings(max_examples=150, deadline=None)
def test_json_reads_back_equal_and_fits_the_schema(policy: Policy) -> None:
    data = json.loads(json.dumps(to_json(policy), allow_nan=False))
    assert from_json(data) == policy
    SCHEMA.validate(data)


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(json_schema())
    assert SCHEMA.is_valid({"terms": []})


@pytest.mark.parametrize(
    ("data", "path", "message"),
    [
        (None, "policy", 'null is not an object; {"terms": [...]}'),
        ([], "policy", "a list is not an object"),
        ({}, "policy.terms", "missing; a list of terms, empty for training without distillation"),
        ({"terms": PKD}, "policy.terms", "an object is not a list of terms"),
        ({"terms": [], "seed": 1}, "policy.seed", "not a key of a policy; its keys are terms, distillers"),
        ({"terms": [PKD] * 21}, "policy.terms", "21 terms; at most 20"),
        ({"terms": ["pkd"]}, "policy.terms[0]", "'pkd' is not an object with knowledge, transforms, distance, weight"),
        ({"terms": [PKD, PKD | {"wieght": 1}]}, "policy.terms[1].wieght", "not a key of a term; one of knowledge, transforms, distance"),
        ({"terms": [{key: PKD[key] for key in PKD if key != "weight"}]}, "policy.terms[0].weight", "missing; a number above 0"),
        ({"terms": [PKD | {"knowledge": 3}]}, "policy.terms[0].knowledge", "3 is not one of global, fgbg"),
        ({"terms": [PKD | {"knowledge": "neck"}]}, "policy.terms[0].knowledge", "'neck' is not a kind of knowledge"),
        ({"terms": [PKD | {"transforms": "none"}]}, "policy.terms[0].transforms", "'none' is not a list of names, innermost first"),
        ({"terms": [PKD | {"transforms": [1, 2, 3]}]}, "policy.terms[0].transforms", "a list is not a list of names, innermost first"),
        (
            {"terms": [PKD, PKD | {"transforms": ["none", "none", "norm_X"]}]},
            "policy.terms[1].transforms[2]",
            "'norm_X' is not a normalisation; one of none, batch",
        ),
        ({"terms": [PKD | {"weight": "5"}]}, "policy.terms[0].weight", "'5' is not a number above 0 and at most 1e+09"),
        ({"terms": [PKD | {"weight": True}]}, "policy.terms[0].weight", "true is not a number"),
        ({"terms": [PKD | {"weight": 10**400}]}, "policy.terms[0].weight", "inf is not a number above 0"),
        ({"terms": [PKD | {"shared_attention": 1}]}, "policy.terms[0].shared_attention", "1 is not true or false"),
        ({"terms": [PKD | {"warm_up": 1.5}]}, "policy.terms[0].warm_up", "1.5 is not a whole number of steps from 0 to 10000000"),
        ({"terms": [PKD | {"auto": "yes"}]}, "policy.terms[0].auto", "'yes' is not true or false"),
        ({"terms": [PKD | {"balanced": 1}]}, "policy.terms[0].balanced", "1 is not true or false"),
        ({"terms": [PKD | {"decay": 2}]}, "policy.terms[0].decay", "2.0 is not a share of the weight, from 0 to 1"),
        ({"terms": [PKD | {"region": 1}]}, "policy.terms[0].region", "1 is not the name of a region"),
        ({"terms": [PKD | {"region": "gt"}]}, "policy.terms[0].region", "'gt' is not a region of global"),
        ({"terms": [PKD | {"reduction": "max"}]}, "policy.terms[0].reduction", "'max' is not a reduction; one of mean, sum"),
        ({"terms": [], "distillers": {}}, "policy.distillers", "an object is not a list of distillers"),
        ({"terms": [], "distillers": [{"name": "fgd"}] * 99}, "policy.distillers", "99 distillers; at most"),
        ({"terms": [], "distillers": ["fgd"]}, "policy.distillers[0]", "'fgd' is not an object with name, and settings where they differ"),
        ({"terms": [], "distillers": [{}]}, "policy.distillers[0].name", "missing; one of "),
        ({"terms": [], "distillers": [{"name": 1}]}, "policy.distillers[0].name", "1 is not one of "),
        ({"terms": [], "distillers": [{"name": "fgd"}, {"name": "kd"}]}, "policy.distillers[1].name", "'kd' is not a distiller; one of "),
        ({"terms": [], "distillers": [{"name": "fgd"}] * 2}, "policy.distillers[1].name", "'fgd' is distillers[0] already"),
        (
            {"terms": [], "distillers": [{"name": "fgd", "region": "all"}]},
            "policy.distillers[0].region",
            "not a key of a distiller; its keys are name, settings, weight, balanced, warm_up, stop, decay",
        ),
        (
            {"terms": [], "distillers": [{"name": "fgd", "warm_up": 0.5}]},
            "policy.distillers[0].warm_up",
            "0.5 is not a whole number of steps from 0 to 10000000",
        ),
        (
            {"terms": [], "distillers": [{"name": "fgd", "stop": 10**400}]},
            "policy.distillers[0].stop",
            "inf is not a share of the training",
        ),
        ({"terms": [], "distillers": [{"name": "fgd", "weight": "1"}]}, "policy.distillers[0].weight", "'1' is not a number above 0"),
        ({"terms": [], "distillers": [{"name": "fgd", "weight": 10**400}]}, "policy.distillers[0].weight", "inf is not a number above 0"),
        ({"terms": [], "distillers": [{"name": "fgd", "balanced": 1}]}, "policy.distillers[0].balanced", "1 is not true or false"),
        ({"terms": [], "distillers": [{"name": "fgd", "settings": []}]}, "policy.distillers[0].settings", "a list is not an object"),
        (
            {"terms": [], "distillers": [{"name": "fgd", "settings": {"alfa": 1}}]},
            "policy.distillers[0].settings.alfa",
            "not a setting of 'fgd'; one of ",
        ),
        (
            {"terms": [], "distillers": [{"name": "fgd", "settings": {"alpha": "1"}}]},
            "policy.distillers[0].settings.alpha",
            "'1' is not a number",
        ),
        (
            {"terms": [], "distillers": [{"name": "fgd", "settings": {"alpha": 10**400}}]},
            "policy.distillers[0].settings.alpha",
            "inf is not a number from ",
        ),
        ({"terms": [PKD | {"stop": None}]}, "policy.terms[0].stop", "null is not a share of the training"),
        ({"terms": [PKD | {"stop": 0}]}, "policy.terms[0].stop", "0.0 is not a share of the training"),
    ],
)
def test_an_error_names_the_path_and_the_schema_refuses_too(data: object, path: str, message: str) -> None:
    ((found_path, found_message),) = errors_of(data)
    assert found_path == path
    assert found_message.startswith(message)
    assert not SCHEMA.is_valid(data)


def test_all_errors_are_told_at_once_in_order() -> None:
    bad = {"knowledge": "global", "transforms": ["x", "none", "none"], "distance": "l9", "weight": -1}
    kl = PKD | {"distance": "kl"}
    assert [path for path, _ in errors_of({"terms": [bad, 7, PKD, kl]})] == [
        "policy.terms[0].transforms[0]",
        "policy.terms[0].distance",
        "policy.terms[0].weight",
        "policy.terms[1]",
        "policy.terms[3].transforms[2]",
    ]


def test_the_exception_reads_like_its_errors() -> None:
    with pytest.raises(PolicyError, match=r"^policy\.terms\[0\]\.distance: 'l9' is not a distance of global"):
        from_json({"terms": [PKD | {"distance": "l9"}]})


def test_an_error_repeats_no_megabytes() -> None:
    assert len(str(errors_of({"terms": [], "distillers": [{"name": "x" * 10**6}]}))) < 1000
    assert len(str(errors_of({"terms": [], "distillers": [{"name": "fgd", "settings": {"x" * 10**6: 1}}]}))) < 1000
    for data in ({"terms": "x" * 10**6}, {"x" * 10**6: 1, "terms": []}, {"terms": [PKD | {"knowledge": ["x" * 10**6]}]}):
        assert len(str(errors_of(data))) < 300
    huge = PKD | {"distance": "x" * 10**6, "transforms": ["none"] * 10**6}
    assert len(str(errors_of({"terms": [huge]}))) < 1000


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["global", "none", "l2", "fgd", ""]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from([*PKD, "terms", "distillers", "name", "settings", "stop", "warm_up", "region"]), inner, max_size=6
        )
    ),
    max_leaves=12,
)


@given(JSON | st.fixed_dictionaries({"terms": st.lists(st.fixed_dictionaries(dict.fromkeys(PKD, JSON)), max_size=2)}))
@settings(max_examples=200, deadline=None)
def test_any_json_is_a_policy_or_a_policy_error(data: object) -> None:
    try:
        policy = from_json(data)
    except PolicyError as error:
        paths = [path for path, _ in error.errors]
    else:
        paths = ["policy"]
        assert from_json(to_json(policy)) == policy
    assert paths
    assert all(path.startswith("policy") for path in paths)
