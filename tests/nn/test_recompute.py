"""nn.Recompute: the same bits as without, whatever the module does, for less memory."""

import gc
import threading
import tracemalloc

import numpy as np
import pytest

import minnl
import models
from minnl import Tensor, dispatch, nn, no_grad, random
from minnl import functional as F
from minnl.study import cost_summary
from minnl.training import checkpoint
from tests import strict_cupy

CLIPS = (3, 8, 16, 16, 1)
LABELS = [0, 1, 2]


def noise(shape=CLIPS, seed=0, requires_grad=False):
    x = np.random.default_rng(seed).standard_normal(shape, np.float32)
    return Tensor(x, requires_grad=requires_grad)


def network(*recomputed):
    """The small network with everything in it, and Recompute around the named stages."""
    minnl.manual_seed(0)
    model = models.build("small", non_local="embedded", dropout=0.4)
    model.res2.nonlocal0.norm.weight.data[...] = 0.5  # with gamma = 0 most gradients of the block are 0
    for name in recomputed:
        setattr(model, name, nn.Recompute(getattr(model, name)))
    return model


def train(model, steps=2):
    """Everything that a few steps leave behind, as bytes: losses, gradients, weights and statistics, chance."""
    minnl.manual_seed(1)
    found = []
    for step in range(steps):
        x = noise(seed=step, requires_grad=True)
        loss = F.cross_entropy(model(x), LABELS)
        model.zero_grad()
        loss.backward()
        for p in model.parameters():
            p.data -= np.float32(0.1) * p.grad
        arrays = [loss.data, x.grad, *(p.grad for p in model.parameters()), *model.state_dict().values()]
        found.append([array.tobytes() for array in arrays])
    return found, random.get_state()


@pytest.mark.parametrize("mode", dispatch.MODES)
@pytest.mark.parametrize(
    "recomputed",
    [("res2",), ("head",), ("stem", "res2", "res3", "head"), ("res3", "res3")],
    ids=["block with a non-local block", "dropout", "everything", "twice around"],
)
def test_the_same_bits_as_without(recomputed, mode):
    with minnl.use_kernels(mode):
        assert train(network(*recomputed)) == train(network())


def test_nested():
    model = network("res3")
    model.res3.res0 = nn.Recompute(model.res3.res0)
    model.res3.res0.branch.a = nn.Recompute(model.res3.res0.branch.a)
    assert train(model) == train(network())


def test_dropout_draws_each_mask_once():
    """Two dropouts, the second outside: it must get the numbers that follow those of the first run."""
    x = noise((4, 50))
    w = nn.Parameter(np.ones(50, np.float32))

    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = w

        def forward(self, x):
            return F.dropout(x * self.w)

    outcomes = []
    for module in (Masked(), nn.Recompute(Masked())):
        minnl.manual_seed(3)
        w.zero_grad()
        y = F.dropout(module(x))
        minnl.manual_seed(4)  # whoever sets the seed between forward and backward changes nothing
        y.backward(np.ones(y.shape, np.float32))
        outcomes.append((y.data.tobytes(), w.grad.tobytes(), random.get_state()))
    assert outcomes[0] == outcomes[1]


class Mixed(nn.Module):
    """Two inputs, in unequal roles."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 6, std=0.5), nn.Linear(6, 6, std=0.5)

    def forward(self, a, b):
        return F.relu(self.first(a)) * F.tanh(self.second(b)) + a


def gradients(module, *inputs):
    y = module(*inputs)
    y.backward(noise(y.shape, seed=9).data)
    return [None if t.grad is None else t.grad.tobytes() for t in (*inputs, *module.parameters())]


@pytest.mark.parametrize("wants", [(True, True), (True, False), (False, True), (False, False)])
@pytest.mark.parametrize("frozen", [(), ("first.weight",), ("first.weight", "second.bias")])
def test_inputs_and_parameters_that_want_no_gradient(wants, frozen):
    outcomes = []
    for wrap in (lambda m: m, nn.Recompute):
        minnl.manual_seed(0)
        module = wrap(Mixed())
        for name, p in module.named_parameters():
            p.requires_grad = name not in frozen
        inputs = [noise((5, 6), seed=i, requires_grad=want) for i, want in enumerate(wants)]
        outcomes.append(gradients(module, *inputs))
    assert outcomes[0] == outcomes[1]
    assert [g is not None for g in outcomes[0][:2]] == list(wants)


def test_inputs_by_name_and_others_than_tensors():
    outcomes = []
    for wrap in (lambda m: m, nn.Recompute):
        module, x, residual = wrap(nn.BatchNorm3d(6)), noise((5, 6), requires_grad=True), noise((5, 6), 1, True)
        y = module(x, True, residual=residual) + module(x, residual=None, relu=False) + module(x, False, residual)
        y.backward(noise(y.shape, seed=9).data)
        outcomes.append([t.grad.tobytes() for t in (x, residual, *module.parameters())])
    assert outcomes[0] == outcomes[1]


def test_one_tensor_as_both_inputs_and_used_outside_too():
    outcomes = []
    for wrap in (lambda m: m, nn.Recompute):
        minnl.manual_seed(0)
        module, x = wrap(Mixed()), noise((5, 6), requires_grad=True)
        outside = x * 2.0
        y = module(x, outside) + outside
        y.backward(np.ones(y.shape, np.float32))
        outcomes.append((x.grad, module.first.weight.grad))
    for ours, theirs in zip(*outcomes, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)  # three summands, added in another order


def test_a_parameter_shared_with_what_is_outside():
    outcomes = []
    for wrap in (lambda m: m, nn.Recompute):
        minnl.manual_seed(0)
        inner = nn.Linear(6, 6, std=0.5)
        module, x = wrap(inner), noise((5, 6))
        y = module(F.tanh(inner(x)))
        y.backward(np.ones(y.shape, np.float32))
        outcomes.append((inner.weight.grad.tobytes(), inner.bias.grad.tobytes()))
    assert outcomes[0] == outcomes[1]


def test_gradients_accumulate_and_retain_graph_sweeps_again():
    model, plain = network("stem", "res2"), network()
    losses = [F.cross_entropy(m(noise()), LABELS) for m in (model, plain)]
    for _ in range(2):  # the generator has moved on: the second run has to draw what the first one drew
        for loss in losses:
            loss.backward(retain_graph=True)
    for ours, theirs in zip(model.state_dict().values(), plain.state_dict().values(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    minnl.manual_seed(0)


class Counting(nn.Module):
    """Computes with a buffer that every run moves."""

    def __init__(self):
        super().__init__()
        self.buffer("runs", np.ones(1, np.float32))

    def forward(self, x):
        self.runs += 1
        return x * Tensor(self.runs.copy())


def test_each_run_again_begins_with_the_buffers_of_the_first():
    x, module = noise((2, 2), requires_grad=True), nn.Recompute(Counting())
    y = module(x)
    for sweep in (1, 2, 3):
        y.backward(np.ones((2, 2), np.float32), retain_graph=True)
        np.testing.assert_array_equal(x.grad, np.full((2, 2), 2.0 * sweep))
    assert module.runs == 2


def test_a_second_sweep_without_retain_graph_is_refused():
    x = noise((5, 6), requires_grad=True)
    y = nn.Recompute(nn.Linear(6, 3))(x)
    y.backward(np.ones(y.shape, np.float32))
    with pytest.raises(RuntimeError, match="backward: an earlier backward freed what recompute had saved"):
        y.backward(np.ones(y.shape, np.float32))


def test_evaluation_mode():
    outcomes = []
    for recomputed in ((), ("stem", "res2", "head")):
        model = network(*recomputed)
        model(noise())  # moves the statistics
        model.eval()
        x = noise(seed=1, requires_grad=True)
        outcomes.append([model(x).data.tobytes(), *gradients(model, x)])
        with no_grad():
            y = model(noise(seed=1))
        assert y.op is None and y.data.tobytes() == outcomes[-1][0]
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize("training", [True, False])
def test_the_second_run_finds_what_the_first_one_found(training):
    """Whatever happens between forward and backward: another mode, statistics that move, new weights, frozen ones."""
    outcomes = []
    for wrap in (lambda m: m, nn.Recompute):
        minnl.manual_seed(0)
        module = wrap(nn.Sequential(nn.Linear(6, 6, std=0.5), nn.BatchNorm3d(6), nn.Dropout(0.5), nn.Linear(6, 2)))
        x = noise((5, 6), requires_grad=True)
        y = module.train(training)(x)
        if wrap is nn.Recompute:
            module.train(not training)
            module(noise((5, 6), seed=3) * 4.0)
            for p in module.parameters():
                p.data, p.requires_grad = p.data * 2, False
        state = {name: (id(array), array.tobytes()) for name, array in module.state_dict().items()}
        before = module.training, random.get_state()
        y.backward(np.ones(y.shape, np.float32))
        assert {name: (id(array), array.tobytes()) for name, array in module.state_dict().items()} == state
        assert (module.training, random.get_state()) == before
        assert {p.requires_grad for p in module.parameters()} == {wrap is not nn.Recompute}
        outcomes.append([x.grad.tobytes(), *(p.grad.tobytes() for p in module.parameters())])
    assert outcomes[0] == outcomes[1]


def test_backward_in_another_thread_and_within_no_grad():
    outcomes = []
    for recomputed in ((), ("res2", "head")):
        model = network(*recomputed)
        loss = F.cross_entropy(model(noise()), LABELS)
        thread = threading.Thread(target=loss.backward)
        thread.start()
        thread.join()
        loss = F.cross_entropy(model(noise(seed=1)), LABELS)
        with no_grad():
            loss.backward()
            assert not (model(noise())).requires_grad
        outcomes.append([p.grad.tobytes() for p in model.parameters()])
    assert outcomes[0] == outcomes[1]


def test_several_threads_may_sweep_at_once():
    model = network("stem", "res2", "res3").eval()
    buffers = dict(model.named_buffers())
    found = {}

    def saliency(seed):
        x = noise(seed=seed, requires_grad=True)
        for _ in range(3):
            x.zero_grad()
            model(x).sum().backward()
        found[seed] = x.grad

    threads = [threading.Thread(target=saliency, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name, array in model.named_buffers():
        assert array is buffers[name]
    for seed in range(4):
        x = noise(seed=seed, requires_grad=True)
        network().eval()(x).sum().backward()
        np.testing.assert_array_equal(found[seed], x.grad)


def test_on_the_device_of_its_parameters():
    with minnl.use_kernels("textbook"), strict_cupy.installed():
        found = []
        for recomputed in ((), ("stem", "res2", "head")):
            model = network(*recomputed).to("gpu")
            minnl.manual_seed(1)
            F.cross_entropy(model(Tensor(noise().data, device="gpu")), LABELS).backward()
            arrays = [*(p.grad for p in model.parameters()), *model.state_dict().values()]
            assert {type(array) for array in arrays} == {strict_cupy.ndarray}
            found.append([minnl.backend.to_host(array).tobytes() for array in arrays])
    assert found[0] == found[1]


class Fragile(nn.Module):
    """Fails when it runs for the second time, in the middle."""

    def __init__(self, failure):
        super().__init__()
        self.norm, self.dropout, self.failure, self.runs = nn.BatchNorm3d(6), nn.Dropout(0.5), failure, 0

    def forward(self, x):
        x = self.dropout(self.norm(x))
        self.runs += 1
        return self.failure(x) if self.runs == 2 else x


def broken(x):
    raise MemoryError("none left")


def test_an_error_in_the_second_run_leaves_everything_as_it_was():
    module, x = nn.Recompute(Fragile(broken)), noise((5, 6), requires_grad=True)
    y = module(x)
    module.eval()
    before = {k: (id(v), v.tobytes()) for k, v in module.state_dict().items()}
    chance = random.get_state()
    with pytest.raises(MemoryError, match="none left"):
        y.sum().backward()
    assert {k: (id(v), v.tobytes()) for k, v in module.state_dict().items()} == before
    assert not module.training and random.get_state() == chance
    assert x.grad is None and module.norm.weight.grad is None
    assert module(x).requires_grad
    y = module.train()(x)
    y.sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize(
    "failure, message",
    [
        (lambda x: x[:2], r"Fragile returned shape \(5, 6\) in its first run and \(2, 6\) in its second run"),
        (
            lambda x: x * OUTSIDE,
            "Fragile uses a tensor that requires a gradient and is neither an input nor a parameter",
        ),
        (lambda x: x * (OUTSIDE * 2.0), "Fragile uses a tensor that requires a gradient and is neither"),
        (lambda x: x * DERIVED, "Fragile uses a tensor that requires a gradient and is neither"),
    ],
)
def test_what_cannot_be_recomputed_is_refused(failure, message):
    x = noise((5, 6), requires_grad=True)
    y = nn.Recompute(Fragile(failure))(x)
    with pytest.raises(RuntimeError, match=message):
        y.sum().backward()
    assert x.grad is None and OUTSIDE.grad is None
    assert DERIVED.op.sources is not None, "the graph of others is whole"


OUTSIDE = Tensor(np.ones(6, np.float32), requires_grad=True)
DERIVED = OUTSIDE * 3.0


def test_a_tensor_made_of_a_parameter_outside_is_refused_too():
    """Its graph belongs to someone else, though it ends where it may."""
    module, x = nn.Recompute(nn.Linear(6, 6)), noise((5, 6), requires_grad=True)
    doubled = module.weight * 2.0
    module.module.forward = lambda x: F.linear(x, doubled)
    with pytest.raises(RuntimeError, match="Linear uses a tensor that requires a gradient and is neither"):
        module(x).sum().backward()
    doubled.sum().backward()
    np.testing.assert_array_equal(module.weight.grad, np.full((6, 6), 2.0))


def test_wrong_modules():
    class Pair(nn.Module):
        def forward(self, x):
            return x, x

    with pytest.raises(TypeError, match="Recompute: module is function, a Module expected"):
        nn.Recompute(F.relu)
    with pytest.raises(TypeError, match="recompute: Pair returned tuple, one Tensor expected"):
        nn.Recompute(Pair())(noise((2, 2), requires_grad=True))


def test_a_module_that_passes_no_gradient():
    class Cut(nn.Module):
        def forward(self, x):
            return x.detach()

    x = noise((2, 2), requires_grad=True)
    (nn.Recompute(Cut())(x) + x).sum().backward()
    np.testing.assert_array_equal(x.grad, np.ones((2, 2)))


# Names, modes, moves: as if it were not there.


def test_names_and_checkpoints_are_those_of_the_module(tmp_path):
    plain, model = network(), network("stem", "res2", "head")
    model.res3.res1 = nn.Recompute(model.res3.res1)
    assert list(model.state_dict()) == list(plain.state_dict())
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in plain.named_parameters()]
    assert [path for path, _ in model.named_modules()] == [path for path, _ in plain.named_modules()]
    train(plain)
    checkpoint.save(tmp_path / "x.safetensors", plain.state_dict(), {})
    model.load_state_dict(checkpoint.load(tmp_path / "x.safetensors")[0])
    np.testing.assert_array_equal(model.eval()(noise()).data, plain.eval()(noise()).data)


def test_parts_are_found_set_and_moved():
    norm = nn.BatchNorm3d(6)
    module = nn.Recompute(nn.Sequential(first=nn.Linear(6, 6), norm=norm))
    assert module.norm is norm and module.module.norm is norm
    module.norm = nn.Recompute(norm)
    assert module.module.norm.module is norm
    assert nn.Recompute(norm).running_mean is norm.running_mean
    module.eval()
    assert not norm.training and not module.training
    module.norm.training = True
    assert norm.training and not module.training
    module.to(dtype=np.float64)
    assert module.norm.running_var.dtype == np.float64 == module(Tensor(np.ones((3, 6)))).dtype
    assert repr(module).splitlines()[0] == "Recompute of Sequential()"
    assert repr(module).splitlines()[2] == "  norm: Recompute of BatchNorm3d(6)"


# Debug mode.


class Root(nn.Module):
    def forward(self, x):
        return F.sqrt(x)


@pytest.mark.parametrize("wrap", [lambda m: m, nn.Recompute])
def test_debug_mode_names_the_same_places(wrap):
    net = nn.Sequential(first=nn.ReLU(), part=wrap(nn.Sequential(root=Root(), last=nn.ReLU())))
    x = Tensor(np.array([0.0, 1.0]), requires_grad=True)
    with minnl.debug(), np.errstate(all="ignore"):
        y = net(x).sum()
        message = r"sqrt in Sequential\.part\.root: backward: the gradient of input 0, shape \(2,\), is the first"
        with pytest.raises(FloatingPointError, match=message):
            y.backward()


def test_debug_mode_sees_an_edit_of_what_is_kept():
    module, x = nn.Recompute(nn.Linear(2, 2)), noise((3, 2))
    with minnl.debug():
        for array, name in ((x.data, "input0"), (module.weight.data, "module.weight")):
            y = module(x).sum()
            array[0] = 2
            with pytest.raises(RuntimeError, match=f"recompute in Recompute: the array saved as `{name}` was edited"):
                y.backward()


def test_debug_mode_allows_what_is_right():
    found = []
    for recomputed in ((), ("stem", "res2", "res3", "head")):
        with minnl.debug():
            found.append(train(network(*recomputed)))
    assert found[0] == found[1]


# Memory.


def blocks(wrap):
    """Eight blocks whose inputs are small and whose middles are large."""
    minnl.manual_seed(0)
    return nn.Sequential(
        *(
            wrap(nn.Sequential(nn.Conv3d(2, 32, 1), nn.ReLU(), nn.BatchNorm3d(32), nn.Conv3d(32, 2, 1)))
            for _ in range(8)
        )
    )


def peak(model, x):
    gc.collect()
    tracemalloc.start()
    try:
        with minnl.use_kernels("textbook"):  # they take no memory from the pool, which tracemalloc would not see
            model(x).sum().backward()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_it_takes_less_memory_and_the_bill_knows():
    x = noise((2, 4, 16, 16, 2))
    plain, model = blocks(lambda m: m), blocks(nn.Recompute)
    real, without = peak(model, x), peak(plain, x)
    assert real < 0.5 * without
    plan = cost_summary.summarize(model, x.shape, optimizer_arrays=0)
    assert 0.8 < plan.peak / real < 1.3
    assert 0.8 < cost_summary.summarize(plain, x.shape, optimizer_arrays=0).peak / without < 1.3


def test_the_bill_keeps_inputs_and_counts_every_op_once():
    x = noise((2, 4, 16, 16, 2))
    plain, plan = (cost_summary.summarize(blocks(wrap), x.shape) for wrap in (lambda m: m, nn.Recompute))
    assert plan.parameters == plain.parameters == sum(row.parameters for row in plan.rows)
    assert plan.multiply_adds == plain.multiply_adds
    assert plan.fixed == plain.fixed and plan.forward_peak == plain.forward_peak
    assert [row.path for row in plan.rows if row.op != "recompute"] == [row.path for row in plain.rows]
    statistics = 2 * 32 * 4
    assert plan.kept == 7 * x.data.nbytes + 8 * statistics, "the first block's input is there anyway"
    again = [row for row in plan.rows if row.op == "recompute"]
    assert [row.kept for row in plan.rows if row not in again] == [0] * 32
    assert sum(row.kept for row in again[0].again) == sum(row.kept for row in plain.rows[:4])


def test_nothing_stays_behind():
    """No cycles, and no second graph left: memory is flat with the collector off."""
    model, x = blocks(nn.Recompute), noise((2, 4, 16, 16, 2))
    gc.collect()
    gc.disable()
    try:
        for _ in range(2):
            model(x).sum().backward()
        model(x)  # a forgotten backward
        model.zero_grad()
        assert gc.collect() == 0
    finally:
        gc.enable()
