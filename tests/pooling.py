"""Poolings at random, for the tests of kernels on either device."""

from hypothesis import strategies as st


@st.composite
def windows(draw, most_kernel, samples, channels, most_dilation=1):
    """Shape of x, and the arguments of a pooling whose windows fit; `samples` and `channels` are strategies."""
    kernel, stride, dilation = (
        [draw(st.integers(1, most)) for _ in range(3)] for most in (most_kernel, 4, most_dilation)
    )  # fmt: skip
    padding = [draw(st.integers(0, k // 2)) for k in kernel]
    least = [max(1, d * (k - 1) + 1 - 2 * p) for k, d, p in zip(kernel, dilation, padding, strict=True)]
    sizes = [draw(st.integers(n, n + 5)) for n in least]
    arguments = {"kernel_size": tuple(kernel), "stride": tuple(stride), "padding": tuple(padding)}
    if most_dilation > 1:
        arguments["dilation"] = tuple(dilation)
    return (draw(samples), *sizes, draw(channels)), arguments | {"ceil_mode": draw(st.booleans())}
