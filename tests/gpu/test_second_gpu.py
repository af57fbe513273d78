"""All of it on the second GPU, while the first one gives no memory and gets no work.

CuPy computes on the current device, the first one unless told otherwise, whatever device holds the arrays. Where the
two GPUs can read each other's memory that goes well, or is a race; where they cannot, it is an error. So here memory
of the first is refused, and so is its work on arrays of the second: CuPy warns of most, the rest the driver refuses.
"""

import numpy as np
import pytest

import minnl
import models
import train
from minnl import Tensor, backend, data, dispatch, nn, optim
from minnl import functional as F
from minnl.kernels.pointwise.cuda import POINTWISE
from minnl.study import check, pictures
from minnl.training import Trainer, checkpoint, evaluation
from minnl.training.precise import precise_batch_norm
from models import transfer
from tests.gpu.device import GPU, TOLERANCE, close, outcome
from tests.gpu.test_cases import TABLE, right

CUPY = backend.load_cupy()
if CUPY.cuda.runtime.getDeviceCount() < 2:
    pytest.skip("needs a GPU beside the first one", allow_module_level=True)
SECOND = minnl.device("gpu:1")
CLIPS = {"frames": 8, "size": 12}


@pytest.fixture(autouse=True)
def the_first_is_left_alone():
    def malloc(size):
        assert CUPY.cuda.Device().id == SECOND.index, "memory of the first GPU was asked for"
        return pool.malloc(size)

    pool, before = CUPY.cuda.MemoryPool(), CUPY.cuda.get_allocator()
    CUPY.cuda.set_allocator(malloc)
    yield
    CUPY.cuda.set_allocator(before)
    assert CUPY.cuda.Device().id == GPU.index
    for device in (GPU, SECOND):
        with backend.on(device):
            CUPY.cuda.runtime.deviceSynchronize()  # the emulator's errors show here
    with backend.on(GPU):
        assert pool.total_bytes() == 0


pytestmark = pytest.mark.filterwarnings("error:The device where the array resides")


def test_the_watch_sees():
    with backend.on(SECOND):
        x, y = CUPY.ones(3), CUPY.empty(3)
    with pytest.raises(AssertionError, match="memory of the first"):
        x.copy()
    with pytest.raises(Warning, match="The device where the array resides"):
        CUPY.add(x, x, out=y)


def test_a_kernel_is_launched_where_its_arrays_are():
    with backend.on(SECOND):
        x, y = CUPY.ones(3), CUPY.empty(3)
    with pytest.raises(ValueError, match="gy is on gpu:1, launched on gpu:0; use backend.on"):
        POINTWISE.launch("relu_gradient<T>", x.dtype, 1, 32, x, x, 3, y)
    with backend.on(x):
        POINTWISE.launch("relu_gradient<T>", x.dtype, 1, 32, x, x, 3, y)
    np.testing.assert_array_equal(backend.to_host(y), [1, 1, 1])


@pytest.mark.parametrize("mode", dispatch.MODES)
@pytest.mark.parametrize("name", TABLE)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's remarks on NaN and infinity
def test_every_op(name, mode):
    case = TABLE[name]
    got, _ = outcome(case.fn, case.inputs(np.random.default_rng(0)), device=SECOND, mode=mode)
    close(got, right(name, "float32"), TOLERANCE["float32"])


def trainer(folder, device, recompute=False, **options):
    """Two epochs of three steps of the small network."""
    minnl.manual_seed(0)
    model = models.build("nl_small", dropout=0.2)
    if recompute:
        model.res2 = nn.Recompute(model.res2)
    model.to(device)
    train_set, test_set = (data.RelationClips(s, clips=n, **CLIPS) for s, n in (("train", 12), ("test", 6)))
    loaders = data.Loader(train_set, 4, shuffle=True, workers=1), data.Loader(test_set, 4)
    optimizer = options.pop("optimizer", optim.AdamW)(model.parameters(), 1e-3)
    return Trainer(model, optimizer, lambda step: 1e-3, *loaders, folder, {}, 2, **options)


def assert_close(folder, other, tolerance):
    got, expected = (checkpoint.load(f / "last.safetensors")[0] for f in (folder, other))
    assert got.keys() == expected.keys()
    for name in expected:
        np.testing.assert_allclose(got[name], expected[name], rtol=0, atol=tolerance, err_msg=name)


RUNS = {
    "plain": {},
    "clipped": {"clip_norm": 0.5, "label_smoothing": 0.1},
    "accumulated": {"accumulate": 2},  # of three batches: the last step has one, and its gradients are scaled
    "precise": {"precise": 2},
    "recomputed": {"recompute": True},
    "sgd": {"optimizer": lambda params, lr: optim.SGD(params, lr, momentum=0.9)},
}


@pytest.mark.parametrize("mode", dispatch.MODES)
@pytest.mark.parametrize("options", RUNS.values(), ids=RUNS)
def test_a_run_that_stops_and_goes_on_follows_numpy(tmp_path, options, mode):
    with minnl.use_kernels(mode):
        assert not trainer(tmp_path / "second", "gpu:1", **options).fit(max_steps=2, plain=True)
        resumed = trainer(tmp_path / "second", "gpu:1", **options)
        resumed.resume(tmp_path / "second" / "last.safetensors")
        assert {str(backend.device_of(a)) for a in resumed.model.state_dict().values()} == {"gpu:1"}
        assert resumed.fit(plain=True)
        kept = [a for slot in resumed.optimizer.kept.values() for a in slot]
        assert {str(backend.device_of(a)) for a in kept} <= {"gpu:1"}
    with minnl.use_kernels("textbook"):
        assert trainer(tmp_path / "cpu", "cpu", **options).fit(plain=True)
    assert_close(tmp_path / "second", tmp_path / "cpu", 1e-4)


def test_every_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    threads = backend.threads()
    numbers = {"clips": 8, "frames": 8, "size": 12, "batch-size": 4, "epochs": 1}
    options = [*(f"--{name}={number}" for name, number in numbers.items()), "--name=run", "--device=gpu:1"]
    assert train.main([*options, "--plan"]) == 0
    assert train.main([*options, "--max-steps", "1", "--precise", "1"]) == 0
    assert train.main(["--resume", "runs/run", "--device", "gpu:1", "--debug"]) == 0
    assert (tmp_path / "runs/run/attention.png").exists()
    capsys.readouterr()
    answers = []
    for device in ("gpu:1", "cpu"):
        assert train.main(["--evaluate", "runs/run", "--device", device, "--batch-size", "100"]) == 0
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1]
    minnl.set_threads(threads)


def test_views_of_videos_are_judged_alike(tmp_path):
    """As --evaluate --views does, and --predict."""
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "few.npz", clips=rng.integers(256, size=(3, 12, 16, 20, 3), dtype=np.uint8), labels=[0, 1, 2])
    dataset = data.ArrayClips(tmp_path / "few.npz", frames=8, size=12, short_side=14)
    results = []
    for device in ("gpu:1", "cpu"):
        minnl.manual_seed(0)
        model = models.build("nl_small", in_channels=3).to(device)
        results.append(evaluation.evaluate_views(model, dataset, clips=2, crops=3, batch_size=4))
    assert results[0].pop("loss") == pytest.approx(results[1].pop("loss"), abs=1e-5)
    assert results[0] == results[1]


def test_memory_that_runs_out(tmp_path):
    """Running statistics that the step which fails has moved are put back where they lie."""
    failing = trainer(tmp_path / "failing", "gpu:1")
    add = failing.accumulated_step.add

    def fails_at_the_third(x, labels):
        if failing.step == 2:
            failing.model(Tensor(x))
            raise MemoryError("Out of memory.")
        add(x, labels)

    failing.accumulated_step.add = fails_at_the_third
    with pytest.raises(MemoryError, match="too large for gpu:1"):
        failing.fit(plain=True)
    assert not trainer(tmp_path / "stopped", "gpu:1").fit(max_steps=2, plain=True)
    assert_close(tmp_path / "failing", tmp_path / "stopped", 0)


def test_an_optimiser_takes_over_a_state_that_is_there(tmp_path):
    def stepped(optimizer, p, times):
        for _ in range(times):
            p.grad = backend.copied(p.data)
            optimizer.step()
        return optimizer

    def parameter():
        return Tensor([1.0, -2.0, 3.0], requires_grad=True, device="gpu:1")

    p, q = parameter(), parameter()
    first = stepped(optim.AdamW([p], 0.1), p, 2)
    with minnl.no_grad():
        q.data = backend.copied(p.data)
    second = optim.AdamW([q], 0.1)
    second.load_state_dict(first.state_dict())
    stepped(first, p, 1), stepped(second, q, 1)
    np.testing.assert_array_equal(p.numpy(), q.numpy())


def test_moving_between_devices():
    rng = np.random.default_rng(0)
    state = {name: rng.normal(size=a.shape).astype("f4") for name, a in nn.BatchNorm3d(3).state_dict().items()}
    norm = nn.BatchNorm3d(3).to("gpu:1")
    norm.load_state_dict(state)
    double = nn.BatchNorm3d(3).to("gpu:1").to(dtype="float64")
    for name, array in norm.to(dtype="float64").state_dict().items():
        np.testing.assert_array_equal(backend.to_host(array), state[name].astype("float64"))
    double.load_state_dict(norm.state_dict())  # from arrays that are there already
    for name, array in double.state_dict().items():
        np.testing.assert_array_equal(backend.to_host(array), state[name].astype("float64"))
    x = Tensor(rng.normal(size=(2, 4)), device="gpu:1", requires_grad=True)
    y = x.to(dtype="float32").to("cpu").to("gpu:1", dtype="float64")
    y.backward(y.data)
    np.testing.assert_array_equal(backend.to_host(x.grad), backend.to_host(y.data).astype("f4"))
    narrow = Tensor(x.data, dtype="float32")
    assert str(narrow.device) == "gpu:1"
    np.testing.assert_array_equal(narrow.numpy(), x.numpy().astype("f4"))
    np.testing.assert_array_equal(Tensor(x.data[:, ::2]).numpy(), x.numpy()[:, ::2])


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_precise_batch_norm(dtype):
    clips = [np.random.default_rng(i).normal(i, 2, size=(2, 2, 3, 3, 4)).astype(dtype) for i in range(3)]
    norm = nn.BatchNorm3d(4).to("gpu:1", dtype)
    precise_batch_norm(norm, [backend.to_device(x, SECOND) for x in clips])
    seen = np.concatenate(clips).astype(float).reshape(-1, 4)
    np.testing.assert_allclose(backend.to_host(norm.running_mean), seen.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(backend.to_host(norm.running_var), seen.var(axis=0), rtol=1e-5)


def test_what_looks_at_a_network(tmp_path):
    """Debug mode, frozen norms, the picture of a block, and the check of gradients."""
    model = models.build("nl_small").to("gpu:1")
    clip, _ = data.RelationClips("test", clips=1, **CLIPS).clip(0)
    assert pictures.attention(model, clip, tmp_path / "attention.png")
    x = Tensor(clip[None], device="gpu:1", requires_grad=True)
    with minnl.debug():
        F.sum(model(x)).backward()
        with pytest.raises(FloatingPointError, match="log: forward: the output"):
            F.log(x * 0)
    norm = nn.BatchNorm3d(2).to("gpu:1")
    transfer.freeze_norms(norm)
    assert norm.frozen
    assert check.main(["conv3d", "batch_norm", "index"], "gpu:1") == 0
