"""A Config of absurd numbers is refused or accepted at once: nothing counts up to them."""

import itertools
import random
import time

import pytest

from models.config import Config

HUGE = 2**31


@pytest.mark.parametrize(
    "options",
    [
        {"pool2_frames": HUGE},
        {"pool1_frames": HUGE},
        {"conv1_frames": HUGE + 1, "conv1_stride": HUGE},
        {"pool1_stride": HUGE, "pool2_frames": 10**5000},
        {"frames": 10**5000, "non_local": "dot", "chunks": {"res3": 7}},
        {"blocks": {"res4": range(10**15)}, "non_local": "dot"},
        {"blocks": {"res4": [0] * 10**6}, "non_local": "dot"},
        {"width": -(10**5000)},
        {"dropout": 10**5000},
        {"depth": "5" * 10**7},
    ],
)
def test_what_would_do_is_computed_not_counted(options):
    began = time.process_time()
    with pytest.raises(ValueError, match="^Config: ") as caught:
        Config(**options)
    assert time.process_time() - began < 1
    assert len(str(caught.value)) < 1000


def test_the_shortest_clip_that_would_do_is_the_shortest():
    """Against counting up from 1, over 500 layouts."""
    draw = random.Random(0)
    for _ in range(500):
        made = Config(
            depth=draw.choice((18, 50)), frames=10**6, size=10**6, conv1_frames=draw.choice((1, 3, 5, 7)),
            conv1_stride=draw.randint(1, 4), pool1_frames=draw.randint(1, 4), pool1_stride=draw.randint(1, 4),
            pool1_padding=draw.randint(0, 1), pool2_frames=draw.randint(1, 5), subsample=draw.choice(("before", None)),
            non_local=draw.choice((None, "dot")), blocks=draw.choice(({"res2": (0,), "res5": (1,)}, {"res4": (0,)})),
        )  # fmt: skip
        for axis, i in (("frames", 0), ("height", 1), ("width", 2)):

            def fits(n, axis=axis, i=i, made=made):
                try:
                    return min(size[i] for size in made.sizes(**{axis: n}).values()) > 0
                except ValueError as error:
                    assert f"{axis}={n} is too small" in str(error)
                    return False

            least = next(n for n in itertools.count(1) if fits(n))
            if least > 1:
                with pytest.raises(ValueError, match=f" {least} would do$"):
                    made.sizes(**{axis: 1})
