import pytest

from engine.schedule import learning_rate


def rates(kind, total=100, warmup=10):
    return [learning_rate(step, total, 1.0, warmup, kind) for step in range(total)]


def test_warm_up_is_linear_and_reaches_the_base_rate():
    assert rates("step")[:11] == pytest.approx([0.1 * k for k in range(1, 11)] + [1.0])


def test_steps_fall_at_fractions_of_the_run_whatever_its_length():
    assert [rates("step")[k] for k in (66, 67, 88, 89, 99)] == pytest.approx([1, 0.1, 0.1, 0.01, 0.01])
    assert rates("step", total=7, warmup=0) == pytest.approx([1, 1, 1, 1, 1, 0.1, 0.01])
    assert [learning_rate(step, 4, 1.0, 0, "step", (0.5,)) for step in range(4)] == pytest.approx([1, 1, 0.1, 0.1])


def test_the_cosine_falls_from_the_base_to_its_final_share():
    values = rates("cosine")
    assert values[10] == pytest.approx(1.0) and values[-1] == pytest.approx(0.02)
    assert all(a >= b for a, b in zip(values[10:], values[11:]))


def test_a_run_of_one_step_has_a_rate():
    assert learning_rate(0, 1, 0.5, 0, "cosine") == pytest.approx(0.5) and learning_rate(0, 1, 0.5, 0, "step") > 0


def test_an_unknown_schedule_is_refused():
    with pytest.raises(ValueError, match="--schedule is 'linear'"):
        learning_rate(5, 10, 1.0, 0, "linear")
