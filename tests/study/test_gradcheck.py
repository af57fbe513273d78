"""The gradient check itself: what it passes, what it fails, what it says, what it refuses; and the command."""

import numpy as np
import pytest

import minnl
from minnl import functional as F
from minnl.__main__ import main
from minnl.engine import Op
from minnl.study.slopes import STEPS
from tests import strict_cupy

rng = np.random.default_rng(0)


class Wrong(Op):
    """x squared, with a gradient spoilt as a function says; what a user's own op may look like."""

    def __init__(self, spoil=lambda g: g):
        self.spoil = spoil

    def forward(self, x):
        self.x = x
        return x * x

    def backward(self, gy):
        return (self.spoil(2 * self.x * gy),)


def at(index, value):
    def spoil(g):
        g = g.copy()
        g[index] = value(g[index])
        return g

    return spoil


def test_a_right_gradient_has_a_curve_with_a_floor():
    result = minnl.gradcheck(F.exp, [rng.normal(size=(3, 4))])
    check = result.inputs[0]
    assert result and check.verdict == "pass" and check.worst is None and check.kinks == 0
    assert (check.name, check.shape, len(check.curve)) == ("x", (3, 4), len(STEPS))
    assert check.floor == min(check.curve) < 1e-9
    assert check.curve[0] > 1e3 * check.curve[2] > 1e6 * check.floor  # falls like the square of the step


@pytest.mark.parametrize("mistake", [1e-2, 1e-4, 1e-6])
def test_a_wrong_one_leaves_a_shelf_as_high_as_its_mistake(mistake):
    result = minnl.gradcheck(lambda x: Wrong(lambda g: g * (1 + mistake))(x), [rng.normal(size=(5, 5))])
    assert not result
    assert result.inputs[0].floor == pytest.approx(mistake, rel=0.1)


def test_the_worst_element_is_found_and_named():
    x = rng.normal(size=(2, 3, 4))
    result = minnl.gradcheck(lambda clip: Wrong(at((1, 2, 0), lambda g: 1.01 * g))(clip), [x])
    worst = result.inputs[0].worst
    assert worst.index == (1, 2, 0)
    assert worst.backward == pytest.approx(1.01 * worst.differences, rel=1e-6)
    assert f"clip[1, 2, 0] is the worst: backward {worst.backward:.9g}, differences" in str(result)


def test_one_wrong_element_in_thousands_is_seen():
    x = rng.normal(size=(20, 500))
    assert minnl.gradcheck(lambda x: Wrong()(x), [x])
    assert not minnl.gradcheck(lambda x: Wrong(at((13, 77), lambda g: 0.0))(x), [x], locate=False)


def test_two_that_changed_places_are_seen():
    def exchange(g):
        g = g.copy()
        g[0, 0], g[0, 1] = g[0, 1], g[0, 0]
        return g

    assert not minnl.gradcheck(lambda x: Wrong(exchange)(x), [rng.normal(size=(4, 4))])


def test_each_input_is_judged_by_itself():
    result = minnl.gradcheck(lambda a, b: a + Wrong(lambda g: -g)(b), [rng.normal(size=3), rng.normal(size=3)])
    assert [(c.name, c.verdict) for c in result.inputs] == [("a", "pass"), ("b", "FAIL")]
    assert not result


def test_not_blind_to_softmax():
    """Weighted with ones its outputs add to 1 whatever x is: the gradient is 0 and a wrong factor stays 0."""

    class Softmax(Op):
        def forward(self, x):
            e = np.exp(x)
            self.y = e / e.sum(axis=-1, keepdims=True)
            return self.y

        def backward(self, gy):
            return (3 * self.y * (gy - (gy * self.y).sum(axis=-1, keepdims=True)),)

    x = rng.normal(size=(3, 4))
    assert minnl.gradcheck(lambda x: F.sum(Softmax()(x)), [x])
    assert not minnl.gradcheck(lambda x: Softmax()(x), [x])


def test_a_forgotten_gradient_fails():
    x = rng.normal(size=3)
    assert not minnl.gradcheck(lambda x: x.detach() * 2, [x])
    assert not minnl.gradcheck(lambda x: x * x.detach(), [x])


def test_a_gradient_of_zero_passes():
    x = rng.normal(size=3)
    result = minnl.gradcheck(lambda x, unused: F.tanh(x), [x, x])
    assert result and result.inputs[1].floor == 0
    assert minnl.gradcheck(lambda x: F.pow(x, 3.0), [np.zeros(4)])
    assert minnl.gradcheck(F.exp, [np.zeros((0, 3))])


def test_a_gradient_that_is_not_finite_fails_and_is_named():
    result = minnl.gradcheck(F.sqrt, [np.array([1.0, 0.0, 2.0])])
    assert result.inputs[0].verdict == "FAIL" and result.inputs[0].worst.index == (1,)


def test_steps_may_leave_the_domain():
    assert minnl.gradcheck(F.log, [np.array([1e-3, 0.5])])


ALONE, MIXED = np.full(3, 1e-4), np.array([1e-4, 1.0, 20.0])


@pytest.mark.parametrize(
    ("fn", "x"),
    [
        (F.log, ALONE),
        (F.log, MIXED),
        (lambda x: 1 / x, np.array([1e-3, 1.0])),
        (F.sqrt, np.array([1e-6, 1e-3, 3.0])),
        (lambda x: F.pow(x, 3.0), np.array([1e-9, 1e-8])),
        (lambda x: x * x, np.array([1e10, 2e10])),
        (lambda x: F.exp(1e-5 * x), np.full(3, 1e5)),
        (F.softmax, np.array([[800.0, 801.0, 799.5]])),
    ],
)
def test_steps_go_with_the_size_of_the_input(fn, x):
    """With steps of 1e-1 to 1e-7, whatever the input, all but the last two had errors of 1e-7 and more."""
    assert minnl.gradcheck(fn, [x])
    assert minnl.gradcheck(lambda x: Scaled(1 + 1e-3)(fn(x)), [x]).inputs[0].verdict == "FAIL"
    assert minnl.gradcheck(lambda x: Scaled(1 + 1e-5)(fn(x)), [x]).inputs[0].verdict == "FAIL"
    assert not minnl.gradcheck(lambda x: Scaled(1 + 1e-7)(fn(x)), [x])


class Scaled(Op):
    """The same, with a gradient that is some factor too large."""

    def __init__(self, factor):
        self.factor = factor

    def forward(self, x):
        return x.copy()

    def backward(self, gy):
        return (self.factor * gy,)


@pytest.mark.parametrize("logit", [30.0, 36.0, 50.0])
def test_a_gradient_that_rounding_hides_is_not_blamed(logit):
    """The loss, 1e-13 or less, is what is left of numbers near 1: differences see its last digits, or 0."""
    result = minnl.gradcheck(lambda x: F.cross_entropy(x, np.array([0])), [np.array([[logit, 0.0, -3.0]])])
    assert not result and result.inputs[0].verdict == "unresolved" and result.inputs[0].worst is None
    assert "x: rounding hides its slope from differences; choose inputs that move the output more" in str(result)
    assert minnl.gradcheck(lambda x: F.cross_entropy(x, np.array([0])), [np.array([[5.0, 0.0, -3.0]])])


def test_digits_lost_on_the_way_are_no_fault_of_backward():
    assert minnl.gradcheck(lambda x: (x + 1e8) - 1e8, [np.ones(3)]).inputs[0].verdict == "unresolved"
    wrong = minnl.gradcheck(lambda x: Scaled(1.01)((x + 1e8) - 1e8), [np.ones(3)])
    assert wrong.inputs[0].verdict == "FAIL"


class Kinked(Op):
    """ReLU that says `slope` where x is 0, and `below` to its left."""

    def __init__(self, slope, below=0.0):
        self.slope, self.below = slope, below

    def forward(self, x):
        self.x = x
        return np.maximum(x, 0)

    def backward(self, gy):
        return (gy * np.where(self.x > 0, 1, np.where(self.x < 0, self.below, self.slope)),)


ON_A_KINK = np.array([[0.0, 1.0, -2.0], [3.0, 0.0, -1.0]])


@pytest.mark.parametrize("slope", [0, 0.3, 0.5, 1])
def test_at_a_kink_any_slope_between_the_two_is_right(slope):
    result = minnl.gradcheck(lambda x: Kinked(slope)(x), [ON_A_KINK])
    assert result and result.inputs[0].kinks == 2


@pytest.mark.parametrize("slope", [-0.01, 1.01, 7])
def test_a_kink_excuses_no_other_slope(slope):
    result = minnl.gradcheck(lambda x: Kinked(slope)(x), [ON_A_KINK])
    assert result.inputs[0].verdict == "FAIL" and result.inputs[0].worst.index in ((0, 0), (1, 1))


def test_a_kink_does_not_excuse_the_elements_beside_it():
    result = minnl.gradcheck(lambda x: Kinked(0, below=1e-4)(x), [ON_A_KINK])
    assert result.inputs[0].verdict == "FAIL" and result.inputs[0].worst.index in ((0, 2), (1, 2))


def test_a_kink_where_outputs_of_either_sign_meet():
    x = np.array([0.0, 0.0, 2.0, -1.0, 3.0])
    assert minnl.gradcheck(lambda x: F.stack([F.relu(x), F.minimum(x, 0.0), F.relu(-x)]), [x])


def test_too_many_kinks_are_no_pass():
    result = minnl.gradcheck(F.relu, [np.array([0.0, 0.0, 0.0, 1.0])])
    assert not result and result.inputs[0].verdict == "kinks"
    assert "x: 3 elements lie on a kink, too many to judge" in str(result)


def test_a_jump_is_no_kink():
    class Step(Op):
        def forward(self, x):
            return (x > 0).astype(x.dtype)

        def backward(self, gy):
            return (0 * gy,)

    x = np.array([0.0, 1.0, -1.0, 2.0])
    assert minnl.gradcheck(lambda x: Step()(x), [x + 0.5])
    result = minnl.gradcheck(lambda x: Step()(x), [x])
    assert result.inputs[0].verdict == "FAIL" and result.inputs[0].worst.index == (0,)


def test_prints_as_a_table():
    result = minnl.gradcheck(lambda x, weight: F.linear(x, weight), [rng.normal(size=(4, 3)), rng.normal(size=(3, 2))])
    head, *rows = str(result).splitlines()
    assert head.split()[:4] == ["input", "shape", "unit", "h=1e-01"] and head.split()[-3:] == [
        "floor",
        "kinks",
        "verdict",
    ]
    assert [row.split()[0] for row in rows] == ["x", "weight"] and all(row.endswith("pass") for row in rows)
    assert {len(row) for row in rows} == {len(rows[0])}


def test_names_of_inputs_without_names():
    result = minnl.gradcheck(lambda *xs: xs[0] * xs[1], [rng.normal(size=3), rng.normal(size=3)])
    assert [c.name for c in result.inputs] == ["input 0", "input 1"]


def test_inputs_stay_as_they_are():
    def rude(x):
        x.data *= 1.5
        return x * x

    x = rng.normal(size=(2, 3))
    frozen = x.copy()
    frozen.flags.writeable = False
    minnl.gradcheck(rude, [x])
    np.testing.assert_array_equal(x, frozen)
    tensor = minnl.Tensor(frozen)
    assert minnl.gradcheck(F.exp, [tensor])
    assert tensor.grad is None and not tensor.requires_grad


def test_same_verdict_every_time():
    def run():
        return str(minnl.gradcheck(F.tanh, [np.linspace(-1, 1, 7)]))

    assert run() == run()


@pytest.mark.parametrize(
    ("fn", "inputs", "error", "message"),
    [
        (
            F.exp,
            [np.ones(3, np.float32)],
            TypeError,
            r"inputs\[0\] is float32; differences need the precision of float64.*astype",
        ),
        (F.exp, [minnl.Tensor(np.ones(3, np.float32))], TypeError, r"inputs\[0\] is float32"),
        (F.add, [np.ones(3), [1.0, 2.0]], TypeError, r"inputs\[1\] must be an array or a Tensor, got list"),
        (F.exp, np.ones(3), TypeError, "inputs must be a list of one array or more, got ndarray"),
        (F.exp, [], TypeError, "one array or more"),
        (F.exp, [np.array([1.0, np.nan])], ValueError, r"inputs\[0\] holds NaN or infinity"),
        (lambda x: F.log(x * 0), [np.ones(2)], ValueError, "fn returns NaN or infinity"),
        (lambda x: x.data, [np.ones(2)], TypeError, "fn must return one Tensor, got ndarray"),
        (lambda x: F.split(x, 2), [np.ones(2)], TypeError, "fn must return one Tensor, got list"),
        (lambda x: x.to(dtype=np.float32), [np.ones(2)], TypeError, "fn turned float64 into float32"),
        (lambda x: F.dropout(x), [np.ones((5, 5))], ValueError, "different outputs.*manual_seed"),
    ],
)
def test_refuses(fn, inputs, error, message):
    with np.errstate(all="ignore"), pytest.raises(error, match=message):
        minnl.gradcheck(fn, inputs)


def test_dropout_can_be_checked_with_a_seed():
    def seeded(x):
        minnl.manual_seed(3)
        return F.dropout(x, 0.5)

    assert minnl.gradcheck(seeded, [rng.normal(size=(4, 5))])


def test_on_a_gpu(monkeypatch):
    x = rng.normal(size=(4, 3))
    with strict_cupy.installed():
        on_gpu = minnl.Tensor(x, device="gpu")
        assert minnl.gradcheck(F.softmax, [on_gpu])
        assert not minnl.gradcheck(lambda x: x * x.detach(), [on_gpu])
        monkeypatch.setenv("CUPY_TF32", "1")  # too late: CuPy has been asked, and goes on without
        assert minnl.gradcheck(F.softmax, [on_gpu])
        with pytest.raises(TypeError, match="gradcheck: arrays on different devices"):
            minnl.gradcheck(F.add, [on_gpu, x])
    with strict_cupy.installed():
        on_gpu = minnl.Tensor(x, device="gpu")
        with pytest.raises(ValueError, match="TF32 is on in CuPy"):
            minnl.gradcheck(F.softmax, [on_gpu])
        assert minnl.gradcheck(F.softmax, [x])


def test_command_prints_a_verdict_for_every_input(capsys):
    assert main(["check", "linear", "neg"]) == 0
    head, *rows, last = capsys.readouterr().out.splitlines()
    assert head.split() == ["case", "input", "shape", "floor", "kinks", "verdict"]
    assert all(row.endswith("  pass") and row.startswith(("linear/", "neg/")) for row in rows)
    assert [row.split()[1] for row in rows if row.startswith("linear/plain")] == ["x", "weight", "bias"]
    assert f"{len(rows)} inputs on cpu: all pass" in last


def test_command_fails_with_a_wrong_backward_and_names_the_element(capsys, monkeypatch):
    monkeypatch.setattr(minnl.ops.pointwise.Tanh, "backward", lambda self, gy: (gy,))
    assert main(["check", "tanh"]) == 1
    out = capsys.readouterr().out
    assert "FAIL" in out and "is the worst: backward" in out and "2 failed" in out


def test_command_knows_its_ops(capsys):
    assert main(["check", "conv3"]) == 2
    message = capsys.readouterr().err
    assert "no op 'conv3'; did you mean conv3d?" in message and "softmax" in message


def test_command_without_the_device_says_so(capsys, monkeypatch):
    def no_cupy():
        raise RuntimeError("device: CuPy cannot be imported")

    monkeypatch.setattr(minnl.backend, "load_cupy", no_cupy)
    assert main(["check", "neg", "--device", "gpu"]) == 2
    assert "CuPy cannot be imported" in capsys.readouterr().err


def test_command_needs_a_command(capsys):
    with pytest.raises(SystemExit, match="2"):
        main([])
    assert "check" in capsys.readouterr().err
