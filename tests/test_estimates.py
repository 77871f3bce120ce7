"""The totals that bench/whole_assignment.py estimates, against populations that are known."""

import math
import random

import estimates
import pytest
from estimates import Estimate


def population(generator: random.Random) -> tuple[list[float], list[float]]:
    """Sizes and seconds of 500 steps: a line with noise."""
    sizes = [generator.lognormvariate(8, 0.3) for _ in range(500)]
    return sizes, [0.2 + 3e-4 * size + generator.gauss(0, 0.1) for size in sizes]


def test_a_total_is_within_its_error_as_often_as_students_t_says():
    generator, away = random.Random(0), []
    for seed in range(300):
        sizes, seconds = population(generator)
        drawn = estimates.stratified(sizes, 10, seed)
        line = estimates.fit([sizes[i] for i in drawn], [seconds[i] for i in drawn])
        estimate = line.sum(sizes, "line")
        away.append((estimate.seconds - sum(seconds)) / estimate.error)
    # 8 degrees of freedom: 65 % within one error, 92 % within two.
    assert 0.60 < sum(abs(x) < 1 for x in away) / len(away) < 0.75
    assert 0.88 < sum(abs(x) < 2 for x in away) / len(away) < 0.96
    assert abs(sum(away) / len(away)) < 4 / math.sqrt(len(away))


def test_steps_that_lie_on_a_line_have_no_error():
    sizes = [float(size) for size in range(1, 101)]
    line = estimates.fit([3, 50, 90], [1 + 2 * size for size in (3, 50, 90)])
    estimate = line.sum(sizes, "line")
    assert estimate.seconds == pytest.approx(sum(1 + 2 * size for size in sizes))
    assert estimate.error == pytest.approx(0, abs=1e-9)


def test_the_sample_has_one_step_of_every_stratum():
    sizes = random.Random(1).sample(range(1000), 100)
    drawn = [sizes[i] for i in estimates.stratified(sizes, 10, seed=2)]
    strata = [sorted(sizes)[start : start + 10] for start in range(0, 100, 10)]
    assert [len(set(drawn) & set(stratum)) for stratum in strata] == [1] * 10
    assert sorted(estimates.stratified([5, 3, 4], 10, seed=0)) == [0, 1, 2]


def test_errors_of_one_source_add_up_and_others_do_not():
    one, same = Estimate(10, {"a": 3.0}), Estimate(5, {"a": 1.0})
    other = Estimate(5, {"b": 3.0})
    assert estimates.total([one, same, other]) == Estimate(20, {"a": 4.0, "b": 3.0})
    assert estimates.total([one, same, other]).error == 5
    assert estimates.ratio(Estimate(10, {"a": 3.0}), Estimate(20, {"b": 8.0})) == (0.5, 0.25)


def test_repeats_have_the_standard_error_of_their_mean():
    estimate = estimates.of_repeats([1.0, 2.0, 3.0], 5, "saving")
    assert estimate == Estimate(10.0, {"saving": pytest.approx(5 / math.sqrt(3))})
    assert estimates.of_repeats([2.0], 5, "saving") == Estimate(10.0)


def test_the_table_has_ratios_to_the_last_side():
    rows = {"all": {"ours": Estimate(90, {"a": 9.0}), "peer": Estimate(300, {"b": 40.0})}}
    table = estimates.markdown(rows, ("ours", "peer"), "command").splitlines()
    assert table[0] == "| command | ours | peer | ours / peer |"
    assert table[2] == "| all | 90.0 s ± 9.0 | 5.00 min ± 0.67 | 0.30 ± 0.05 |"
