"""Every op as plain loops over single numbers, written from its formula: slow, and easy to see that it is right.

Nothing here knows minnl. A function has the name and the arguments of its twin in minnl.functional and takes NumPy
arrays; ``X_backward(gy, ...)`` takes the gradient that arrives at X's result, then X's own arguments, and gives the
gradients of X's array inputs as a tuple. The pages of docs/ops show these loops beside the ops;
tests/ops/test_reference.py holds the ops to them.
"""

from tests.reference.affinities import *  # noqa: F403
from tests.reference.convolution import *  # noqa: F403
from tests.reference.elementwise import *  # noqa: F403
from tests.reference.losses import *  # noqa: F403
from tests.reference.masks import *  # noqa: F403
from tests.reference.matrices import *  # noqa: F403
from tests.reference.movements import *  # noqa: F403
from tests.reference.normalisation import *  # noqa: F403
from tests.reference.pooling import *  # noqa: F403
from tests.reference.reductions import *  # noqa: F403
from tests.reference.softmaxes import *  # noqa: F403
