"""Equal policies are equal strings."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detkds_core.policy import Distiller, Policy, Term, canonical, canonical_json, check, formula, parse_formula
from detkds_core.policy.distillers import DISTILLERS

from .strategies import policies


def folded(text: str) -> str:
    return formula(canonical(parse_formula(text)))


def test_canonical_json_by_hand() -> None:
    policy = parse_formula("2*kl[T=4](softmax_HW(logits)) + 6*l1(norm_N(scale_r2(catt(global))))")
    assert canonical_json(policy) == (
        '{"terms":['
        '{"distance":"l1","knowledge":"global","transforms":["catt","scale_r2","norm_N"],"weight":6.0},'
        '{"distance":"kl","knowledge":"logits","temperature":4.0,"transforms":["softmax_HW"],"weight":2.0}]}'
    )
    assert canonical_json(Policy(())) == '{"terms":[]}'


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        # A pool of one cell, and layouts that the distance does not see.
        ("l2(scale_r1(global))", "l2(global)"),
        ("l1(batch(global))", "l1(global)"),
        ("smooth_l1(channel(fgbg))", "smooth_l1(fgbg)"),
        ("pear(channel(global))", "pear(global)"),
        ("pear(batch(global))", "pear(batch(global))"),
        ("l1(channel(logits))", "l1(logits)"),
        # local_s1 is a permutation to elements, and a flattening to what looks along channels.
        ("l1(norm_N(local_s1(global)))", "l1(norm_N(global))"),
        ("kl(softmax_N(local_s1(global)))", "kl(softmax_N(global))"),
        ("cos(local_s1(global))", "cos(batch(global))"),
        ("cos(batch(local_s4(global)))", "cos(batch(global))"),
        ("pear(batch(local_s4(global)))", "pear(batch(local_s4(global)))"),  # the padding moves the mean
        ("l1(norm_C(local_s1(global)))", "l1(norm_C(local_s1(global)))"),
        # (f + 1) / 2 is a factor of the weight, of the temperature, or nothing.
        ("2·l1(scale(global))", "l1(global)"),
        ("2·l2(scale(fgbg))", "0.5·l2(fgbg)"),
        ("smooth_l1(scale(global))", "smooth_l1(scale(global))"),
        ("pear(scale(global))", "pear(global)"),
        ("l2(min_max_normalize(scale(global)))", "l2(min_max_normalize(global))"),
        ("8·kl(softmax_HW(scale(global)))", "2·kl[T=2](softmax_HW(global))"),
        ("kl[T=60](softmax_HW(scale(global)))", "kl[T=60](softmax_HW(scale(global)))"),  # 120 is no temperature
        ("kl(softmax_HW(scale(instance)))", "kl(softmax_HW(scale(instance)))"),
        # Pearson and cosine see no factor, Pearson no summand.
        ("pear(norm_C(global))", "pear(global)"),
        ("cos(norm_C(logits))", "cos(logits)"),
        ("cos(norm_C(instance))", "cos(norm_C(instance))"),  # the map is normalised before it is cut
        ("pear(logsoftmax_C(instance))", "pear(instance)"),
        ("cos(logsoftmax_C(global))", "cos(logsoftmax_C(global))"),
        ("pear(min_max_normalize(logits))", "pear(logits)"),
        # Attention that the normalisation divides away.
        ("l1(norm_C(satt(global)))", "l1(norm_C(global))"),
        ("l1[shared](norm_C(satt(global)))", "l1(norm_C(global))"),
        ("l1(norm_C(scale_r2(satt(global))))", "l1(norm_C(scale_r2(satt(global))))"),
        ("l2(norm_HW(scale_r2(catt(instance))))", "l2(norm_HW(scale_r2(instance)))"),
        ("pear(min_max_normalize(scale(satt(global))))", "pear(global)"),  # one fold opens the next
        ("l1(norm_HW(satt(global)))", "l1(norm_HW(satt(global)))"),
        ("cos(relu(satt(global)))", "cos(relu(global))"),
        ("cos(pow2(satt(instance)))", "cos(pow2(satt(instance)))"),
        ("pear_HW(abs(scale_r2(catt(instance))))", "pear_HW(abs(scale_r2(instance)))"),
        ("pear_N(catt(global))", "pear_N(catt(global))"),  # each image has its own factor
        # Along its own axis a distance sees no factor and no summand, of the channel over all images neither.
        ("pear_HW(standardize(global))", "pear_HW(global)"),
        ("pear_HW(standardize(instance))", "pear_HW(standardize(instance))"),  # outside the map the summand is missing
        ("pear_HW(norm_HW(instance))", "pear_HW(instance)"),
        ("pear_HW(logsoftmax_HW(global))", "pear_HW(global)"),
        ("pear_HW(channel(scale(global)))", "pear_HW(global)"),
        ("pear_N(norm_N(fgbg))", "pear_N(fgbg)"),
        ("cor(batchnorm(scale(global)))", "cor(global)"),
        ("cor(batch(logits))", "cor(logits)"),
        ("cor(logsoftmax_C(logits))", "cor(logsoftmax_C(logits))"),
        ("l2(standardize(scale(instance)))", "l2(standardize(instance))"),
        ("l2(batchnorm(scale(global)))", "l2(batchnorm(scale(global)))"),  # its eps is under the root
        ("pear_N(local_s1(global))", "pear_N(global)"),
        ("pear_N(local_s2(global))", "pear_N(local_s2(global))"),  # the padding counts
        ("cos(min_max_normalize(global))", "cos(min_max_normalize(global))"),
        # exp is a softmax but for a factor.
        ("cos(exp(global))", "cos(softmax_C(global))"),
        ("pear_HW(exp(logits))", "pear_HW(softmax_HW(logits))"),
        ("cor(exp(fgbg))", "cor(softmax_N(fgbg))"),
        ("pear_N[region=proposals](exp(logits))", "pear_N[region=proposals](exp(logits))"),
        ("pear(exp(instance))", "pear(exp(instance))"),
        ("l1(exp(global))", "l1(exp(global))"),
        # What is not negative already, and what lies within 1 of each other.
        ("l1(relu(natt(global)))", "l1(natt(global))"),
        ("l1(relu(global))", "l1(relu(global))"),
        ("pear(abs(logits))", "pear(logits)"),
        ("2·smooth_l1(logits)", "l2(logits)"),
        ("2·smooth_l1[region=proposals](leaky_relu(logits))", "l2[region=proposals](logits)"),
        ("smooth_l1(exp(logits))", "smooth_l1(exp(logits))"),  # from 1 to e
        ("2·smooth_l1(softmax_C(global))", "l2(softmax_C(global))"),
        ("2·smooth_l1(norm_C(natt(global)))", "l2(norm_C(natt(global)))"),
        ("smooth_l1(norm_C(global))", "smooth_l1(norm_C(global))"),  # from -1 to 1
        ("pear_N(sqrt(local_s1(natt(global))))", "pear_N(softmax_N(global))"),
        # Grams of images see no order; a sum counts no zeros.
        ("l2(mm(local_s4(global)))", "l2(mm(global))"),
        ("l2(local_s2(global))", "l2(local_s2(global))"),
        ("l2[reduction=sum](norm_N(local_s2(global)))", "l2[reduction=sum](norm_N(global))"),
        ("l2[reduction=sum](min_max_normalize(local_s2(global)))", "l2[reduction=sum](min_max_normalize(local_s2(global)))"),
        # A mask is one score: its vector is its positions.
        ("pear[region=masks](batch(logits))", "pear_HW[region=masks](logits)"),
        ("pear(batch(logits))", "pear(batch(logits))"),
        # The weight of an auto term is a ratio, which no factor of the loss changes.
        ("2·l1[auto](scale(global))", "2·l1[auto](global)"),
        ("3·kl[auto](softmax_C(scale(global)))", "3·kl[auto, T=2](softmax_C(global))"),
        ("2·l1[balanced](scale(global))", "2·l1[balanced](global)"),
        ("l1[balanced](global) + l1[auto](global) + 2·l1[balanced](scale(global))", "3·l1[balanced](global) + l1[auto](global)"),
        ("l1[auto](global) + l1(global) + 2·l1[auto](global)", "l1(global) + 3·l1[auto](global)"),
    ],
)
def test_no_ops_are_folded(written: str, meant: str) -> None:
    assert folded(written) == meant


def test_terms_are_sorted_and_equal_ones_are_one() -> None:
    assert (
        folded("giou(localization) + 2·l2(batch(global)) + l1(global) + 3·l2(global)") == "l1(global) + 5·l2(global) + giou(localization)"
    )
    # A factor of the weight makes terms equal too; an option keeps them apart.
    assert folded("2·l1(scale(global)) + l1(global)") == "2·l1(global)"
    assert folded("l2(fgbg) + l2[background=2](fgbg)") == "l2(fgbg) + l2[background=2](fgbg)"


def test_a_distillers_weight_stays_apart_from_its_settings() -> None:
    assert folded("2·mgd[alpha=2e-05]") == "2·mgd"
    assert folded("l1(global) + 0.5·mgd[balanced] + 1·fgd[balanced, beta=0.0005]") == "fgd[balanced] + 0.5·mgd[balanced] + l1(global)"
    assert folded("mgd[alpha=4e-05]") == "mgd[alpha=4e-05]"


def test_distillers_are_sorted_and_their_defaults_left_out() -> None:
    names = sorted(DISTILLERS)
    (key, setting), *_ = next(entry.settings.items() for entry in DISTILLERS.values() if entry.settings)
    owner = next(name for name in names if key in DISTILLERS[name].settings)
    policy = Policy((), tuple(Distiller(name, ((key, setting.default),) if name == owner else ()) for name in names[::-1]))
    assert canonical(policy) == Policy((), tuple(Distiller(name) for name in names))
    assert canonical_json(Policy((), (Distiller(owner, ((key, setting.high),)),))) == (
        f'{{"distillers":[{{"name":"{owner}","settings":{{"{key}":{float(setting.high)!r}}}}}],"terms":[]}}'
    )


def test_numbers_have_one_text() -> None:
    term = Term("fgbg", ("none", "none", "none"), "l2", 2, background=-0.0, stop=1)
    assert canonical_json(Policy((term,))) == canonical_json(Policy((replace(term, weight=2.0, background=0.0, stop=1.0),)))
    assert '"weight":2.0' in canonical_json(Policy((term,)))


def test_a_sum_of_weights_does_not_depend_on_the_order() -> None:
    weights = ["0.1", "0.2", "0.3", "1e-09"]
    assert folded(" + ".join(f"{w}·l1(global)" for w in weights)) == folded(" + ".join(f"{w}·l1(global)" for w in weights[::-1]))


def test_a_weight_too_small_to_halve_is_left() -> None:
    assert folded("5e-324·l1(scale(global))") == "5e-324·l1(scale(global))"


@given(policies(), st.randoms(use_true_random=False))
@settings(max_examples=150, deadline=None)
def test_canonical_is_a_normal_form(policy: Policy, rng) -> None:
    one = canonical(policy)
    assert not check(one)
    assert canonical(one) == one
    assert canonical(parse_formula(formula(policy))) == one
    shuffled, distillers = list(policy.terms), list(policy.distillers)
    rng.shuffle(shuffled)
    rng.shuffle(distillers)
    assert canonical_json(Policy(tuple(shuffled), tuple(distillers))) == canonical_json(policy)
