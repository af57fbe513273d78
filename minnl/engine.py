"""The autograd engine: Tensor, Op, and the sweep that runs a graph backwards.

A :class:`Tensor` holds an array and, if it was computed, the :class:`Op` that made it; an op holds the ops (or leaf
tensors) that its inputs came from, and those arrays, and only those, that its backward needs. That is the whole
graph: references point only backwards in time, so it has no cycles and is freed by reference counting the moment the
last tensor goes. docs/engine.md walks through it.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import threading
import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import numpy as np

from minnl import backend, debugging, dispatch
from minnl.backend import Array, Device
from minnl.contracts import (
    FLOATS,
    Size,
    check_data,
    check_grad,
    check_gradients,
    check_result,
    numbers,
    refuse_call,
)

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, DTypeLike

    from minnl.methods import Methods
else:
    Methods = object  # minnl/methods.py, which needs Tensor, gives it the methods later

_age = itertools.count()  # an op is younger than everything it was made from


class _State(threading.local):
    """What a thread has switched on; threads do not see each other's."""

    recording = True
    plan: Any = None  # a study.cost_summary.Plan, which ops tell of themselves instead of computing: see Op.infer


state = _State()


@contextlib.contextmanager
def recording(on: bool) -> Iterator[None]:
    """Context in which ops of this thread record a graph, or record none."""
    before, state.recording = state.recording, on
    try:
        yield
    finally:
        state.recording = before


def no_grad() -> AbstractContextManager[None]:
    """Context in which ops record no graph: for evaluation, and for editing parameters."""
    return recording(False)


class Tensor(Methods):
    """An array with a memory of how it was made.

    Parameters
    ----------
    data : ndarray (NumPy or CuPy) of float32 or float64, or nested lists or a number (they become float32)
        Held as it is, not copied: an edit of the array is an edit of the tensor.
    requires_grad : bool
        Whether `backward` leaves a gradient in `.grad`.
    dtype, device
        Convert or move `data` first. Nothing is ever converted without being asked for.

    Attributes
    ----------
    grad : ndarray of the same shape, dtype and device, or None
    op : Op or None for a leaf

    Raises
    ------
    TypeError
        For data of another dtype (integers, float16, bool): say which float is wanted. For data that are no real
        numbers (None, text, complex numbers), or an array with rules of its own (np.matrix, a masked array).
    ValueError
        For lists of different lengths in a list.

    Notes
    -----
    A tensor is equal to itself only as a key of a dict: ``==`` compares elements. Its operators and methods, and how it
    meets NumPy, are in minnl/methods.py.
    """

    __slots__ = ("_data", "requires_grad", "_grad", "op", "__weakref__")

    def __init__(
        self, data: ArrayLike, requires_grad: bool = False, dtype: DTypeLike | None = None,
        device: str | Device | None = None,
    ):  # fmt: skip
        if isinstance(data, Tensor):
            raise TypeError("Tensor: data is a Tensor already; use .detach() for one that shares its array")
        array: Array = data if type(data) is np.ndarray and dtype is None else numbers(data, dtype)
        if array.dtype not in FLOATS:
            raise TypeError(
                f"Tensor: data has dtype {array.dtype}, float32 or float64 expected; say Tensor(data, dtype=np.float32)"
            )
        if requires_grad is not False and not isinstance(requires_grad, (bool, np.bool_)):
            raise TypeError(
                f"Tensor: requires_grad must be True or False, got {requires_grad!r}; a shape is given by an array: "
                "Tensor(np.zeros(shape, np.float32))"
            )
        self._data: Array = array if device is None else backend.to_device(array, backend.device(device))
        self.requires_grad = bool(requires_grad)
        self._grad: Array | None = None
        self.op: Op | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self._data.shape

    @property
    def ndim(self) -> int:
        return self._data.ndim

    @property
    def size(self) -> int:
        return Size(self._data.size)

    @property
    def dtype(self) -> np.dtype[Any]:
        return self._data.dtype

    @property
    def device(self) -> Device:
        return backend.device_of(self._data)

    @property
    def is_leaf(self) -> bool:
        return self.op is None

    @property
    def data(self) -> Array:
        return self._data

    @data.setter
    def data(self, array: Array) -> None:
        self._data = check_data(array, self._grad)

    @property
    def grad(self) -> Array | None:
        return self._grad

    @grad.setter
    def grad(self, array: Array | Tensor | None) -> None:
        array = array.data if isinstance(array, Tensor) else array
        self._grad = None if array is None else check_grad(array, self._data)

    def numpy(self) -> Array:
        """The data as a NumPy array (a copy only if it is on a GPU)."""
        return backend.to_host(self.data)

    def __reduce_ex__(self, protocol):
        """For copy and pickle: of leaves only. A copy of a graph would send its gradients to copies of the leaves."""
        if self.op is not None:
            raise TypeError(f"copy: the tensor was computed by {self.op.name} and has a graph; copy or save t.detach()")
        return super().__reduce_ex__(max(protocol, 2))

    def detach(self) -> Tensor:
        """A leaf that shares the array and knows nothing of the graph."""
        return Tensor(self.data)

    def zero_grad(self) -> None:
        self.grad = None

    def retain_grad(self) -> None:
        """Ask `backward` to leave a gradient here too, though this is not a leaf."""
        if not self.requires_grad:
            raise ValueError("retain_grad: the tensor does not require a gradient, none would ever arrive")
        if self.op is not None:
            self.op.retained = weakref.ref(self)

    def backward(self, grad: Array | Tensor | None = None, retain_graph: bool = False) -> None:
        """Accumulate d(self)/d(leaf), weighted with `grad`, into the `.grad` of every leaf that asks for it.

        Parameters
        ----------
        grad : ndarray of self's shape and dtype; may be left out for a single element (it is 1)
        retain_graph : bool
            Keep what the ops kept, for another sweep. Without it their memory goes as the sweep passes.
        """
        backward(self, grad, retain_graph)


class Op:
    """One differentiable function: forward and backward on plain arrays, side by side.

    A subclass writes ``forward(*arrays) -> array`` and ``backward(gy) -> tuple`` (a gradient, or None, for each input).
    `saved_for_backward` names the attributes that forward leaves on `self` for backward. The engine drops them as the
    sweep passes, counts their bytes in the cost summary before a run, and in debug mode watches them for edits.
    ``self.needs[i]`` says whether input i wants a gradient (under no_grad none does). ``self.xp`` is numpy or cupy.
    An op object is called once, for it carries what its one backward needs.
    """

    saved_for_backward: tuple[str, ...] = ()
    converts = False  # whether forward may return another dtype than its inputs have, or move to another device
    multiply_adds = 0  # of one forward; set by `infer` where it is not nothing
    sources: tuple[Any, ...] | None = None  # of each input: an Op, a leaf Tensor, or None if it wants no gradient
    retained: weakref.ref[Tensor] | None = None  # a weak reference to the output, if it asked for its gradient

    @property
    def name(self) -> str:
        return getattr(self, "public_name", type(self).__name__)

    def forward(self, *arrays: Any, **_: Any) -> Any:
        raise NotImplementedError(f"{self.name} has no forward")

    def backward(self, gy: Any, /) -> tuple[Array | None, ...]:
        raise NotImplementedError(f"{self.name} has no backward")

    def infer(self, *arrays: Any, **_: Any) -> Any:
        """What `forward` returns and keeps, for arrays of shapes without memory (see :func:`meta_array`).

        The default computes, which is right for views and small results; ops with large ones say their shapes.
        """
        return self.forward(*arrays)

    def __init_subclass__(cls) -> None:
        if isinstance(cls.saved_for_backward, str):
            raise TypeError(
                f"{cls.__name__}: saved_for_backward must be a tuple of names; "
                f"write saved_for_backward = ({cls.saved_for_backward!r},)"
            )

    def __call__(self, *inputs: Tensor) -> Tensor:
        name = self.name
        arrays = check_inputs(name, inputs)
        xp, home = backend.namespace(name, *arrays), inputs[0].device
        if self.__dict__.setdefault("call", call := object()) is not call:  # in one step: of two threads one is refused
            refuse_call(self)
        self.xp = xp
        self.needs = tuple(state.recording and t.requires_grad for t in inputs)
        if state.plan is not None:
            y = state.plan.run(self, arrays)
        else:
            kernel = dispatch.kernel_of(self, arrays)
            if kernel is not None:
                self.__class__ = kernel  # a subclass of this op: forward, backward and the names of what is saved
            with backend.on(home):
                y = self.forward(*arrays)
        if type(y) is not type(arrays[0]) or y.dtype != arrays[0].dtype:
            y = check_result(self, y, arrays[0])
        if debugging.active():
            debugging.after_forward(self, arrays, y)
        out = Tensor(y)
        if any(self.needs):
            self.sources = tuple((x.op or x) if x.requires_grad else None for x in inputs)
            self.expected = tuple((x.shape, x.dtype) for x in inputs)
            self.home, self.age = home, next(_age)
            out.requires_grad, out.op = True, self
        return out

    def gradients(self, gy: Array) -> list[Array | None]:
        """Backward, with every gradient checked against the input it belongs to."""
        if self.sources is None:
            raise RuntimeError(
                f"backward: what {self.name} kept is gone, a sweep has passed it already; "
                "call the first backward with retain_graph=True, or run forward again"
            )
        if debugging.active():
            debugging.before_backward(self)
        if state.plan is not None:
            return state.plan.gradients(self, gy)
        with backend.on(self.home):
            grads = check_gradients(self, self.backward(gy))
        if debugging.active():
            debugging.after_backward(self, gy, grads)
        return grads

    def release(self) -> None:
        """Drop the way back and everything kept for it."""
        self.sources = None
        for key in self.saved_for_backward:
            if self.__dict__.pop(key, self) is self:
                raise TypeError(f"{self.name}: saved_for_backward names {key!r}, but forward left no self.{key}")


def backward(root, grad=None, retain_graph=False):
    """Sweep over the graph of `root`, then add what arrived to `.grad`: an error on the way leaves each as it was."""
    if not root.requires_grad:
        raise ValueError("backward: the tensor does not require a gradient (no input did, or it was made in no_grad)")
    seed = check_seed(root, grad)
    taken = {id(seed)}
    for x, gx in sweep(root, seed, retain_graph).items():
        if x.grad is not None:
            x.grad = _plus(x.grad, gx)
        elif isinstance(gx.base, type(gx)) or id(gx) in taken:  # a view, or went to two inputs, or is the caller's own
            with backend.on(x.device):
                x.grad = gx.copy()
        else:
            x.grad = gx
        taken.add(id(x.grad))


def sweep(root, seed, retain_graph=False):
    """Run the graph of `root` backwards, youngest op first: no recursion, however deep the graph.

    An op is younger than all it was made from, so taking always the youngest that waits is a topological order, and
    when an op's turn comes every op that used its output has added its share. Returns the gradient of each leaf, and of
    each tensor that retains its own.
    """
    start = root.op or root
    waiting, arrived = {start: seed}, {}
    heap = [] if root.is_leaf else [(-start.age, start)]
    while heap:
        op = heapq.heappop(heap)[1]
        gy, sources = waiting.pop(op), op.sources
        grads = op.gradients(gy)
        tensor = op.retained and op.retained()
        if tensor is not None:
            arrived[tensor] = gy
        if not retain_graph:
            op.release()
        for source, gx in zip(sources, grads, strict=True):
            if source is None or gx is None:
                continue
            if source in waiting:
                waiting[source] = _plus(waiting[source], gx)
            else:
                waiting[source] = gx
                if isinstance(source, Op):
                    heapq.heappush(heap, (-source.age, source))
    return arrived | waiting


class Accumulation:
    """The addition of two gradients on their device. The result is a new array, since others may share the two."""

    def forward(self, a, b):
        with backend.on(backend.device_of(a)):
            return backend.namespace("backward", a, b).asarray(a + b)  # NumPy adds 0-d arrays to a scalar


def _plus(a, b):
    if state.plan is not None:
        return meta_array(a.shape, a.dtype)
    op = Accumulation()
    op.__class__ = dispatch.kernel_of(op, (a, b)) or Accumulation
    return op.forward(a, b)


def check_seed(root, grad):
    """The array that the sweep starts from: `grad`, or 1 for a single element."""
    if isinstance(grad, Tensor):
        grad = grad.data
    if grad is None:
        if root.size != 1:
            raise ValueError(
                f"backward: the tensor has shape {root.shape}; "
                "pass grad, an array of that shape, or reduce to one element first (sum, mean)"
            )
        with backend.on(root.device):
            return backend.namespace("backward", root.data).ones_like(root.data)
    if not backend.is_array(grad):
        raise TypeError(f"backward: grad must be an array, got {type(grad).__name__}")
    if grad.shape != root.shape:
        raise ValueError(f"backward: grad has shape {grad.shape}, the tensor has {root.shape}")
    if grad.dtype != root.dtype:
        raise TypeError(f"backward: grad is {grad.dtype}, the tensor is {root.dtype}")
    backend.namespace("backward", root.data, grad)
    return grad


def check_inputs(op, inputs):
    """The arrays of an op's inputs; refuses what is not a Tensor and mixtures of float types or devices."""
    if not inputs:
        raise TypeError(f"{op}: called without inputs, a Tensor or more expected")
    for i, x in enumerate(inputs):
        if not isinstance(x, Tensor):
            raise TypeError(f"{op}: input {i} is {type(x).__name__}, a Tensor expected; wrap it in minnl.Tensor(...)")
    if len({x.dtype for x in inputs}) > 1:
        what = ", ".join(f"{x.shape} {x.dtype}" for x in inputs)
        raise TypeError(f"{op}: inputs of different dtypes: {what}; convert one with .to(dtype=...)")
    return tuple([x._data for x in inputs])


def meta_array(shape, dtype):
    """An array of a shape that takes no memory (every element is the same zero), for planning."""
    memory = np.zeros((), dtype)
    array = np.broadcast_to(memory, shape)
    if state.plan is not None:
        state.plan.made(memory, array.nbytes)
    return array
