"""What can't be folded is an error that says why."""

import jax.numpy as jnp
import pytest
from models import says

import jaxnorm as jn

NORM = jn.BatchNorm(), *jn.BatchNorm().init(6)
KERNEL = jnp.ones((3, 3, 4, 6))


class Doubled(jn.BatchNorm):
    def apply(self, params, state, x, *, train, where=None):
        y, state = super().apply(params, state, x, train=train, where=where)
        return 2 * y, state


REFUSED = {
    "Doubled has an apply of its own": lambda s, p, t: jn.fold(Doubled(), p, t, KERNEL),
    r"params.scale has shape \(1, 6\)": lambda s, p, t: jn.fold(s, p._replace(scale=jnp.ones((1, 6))), t, KERNEL),
    "epsilon=-1.0 is not 0 or more": lambda s, p, t: jn.fold(jn.BatchNorm(epsilon=-1.0), p, t, KERNEL),
    "norm or the bias is complex": lambda s, p, t: jn.fold(s, p, t, KERNEL, jnp.ones(6, "complex64")),
    "groups=0 is not a number": lambda s, p, t: jn.fold(s, p, t, KERNEL, groups=0),
    "groups=2.0 is not a number": lambda s, p, t: jn.fold(s, p, t, KERNEL, groups=2.0),
    "are both axis 3": lambda s, p, t: jn.fold(s, p, t, KERNEL, input_axis=-1),
    "LayerNorm": lambda s, p, t: jn.fold(jn.LayerNorm(), p, None, KERNEL),
    "InstanceNorm takes statistics of the data": lambda s, p, t: jn.fold(jn.InstanceNorm(), p, t, KERNEL),
    "BatchInstanceNorm": lambda s, p, t: jn.fold(jn.BatchInstanceNorm(), p, t, KERNEL),
    "LayerNorm takes": lambda s, p, t: jn.fold(jn.freeze(jn.LayerNorm()), p, t, KERNEL),
    "params is a RunningStats": lambda s, p, t: jn.fold(s, t, p, KERNEL),
    "state is a dict": lambda s, p, t: jn.fold(s, p, t._asdict(), KERNEL),
    r"state.mean has shape \(1, 6\)": lambda s, p, t: jn.fold(s, p, t._replace(mean=t.mean[None]), KERNEL),
    r"has 6 channels, but the kernel, of shape \(3, 3, 6, 4\), has 4 along output_axis=3": lambda s, p, t: jn.fold(
        s, p, t, jnp.ones((3, 3, 6, 4))
    ),
    "norm before the layer has 6 channels.*has 4 along input_axis=2": lambda s, p, t: jn.fold(
        s, p, t, KERNEL, before=True
    ),
    "padding='SAME'": lambda s, p, t: jn.fold(s, p, t, jnp.ones((3, 3, 6, 4)), before=True, padding="SAME"),
    r"padding=\(\(1, 1\), \(0, 0\)\)": lambda s, p, t: jn.fold(
        s, p, t, jnp.ones((3, 3, 6, 4)), before=True, padding=((1, 1), (0, 0))
    ),
    r"bias has shape \(4,\)": lambda s, p, t: jn.fold(s, p, t, KERNEL, jnp.ones(4)),
    "kernel has dtype int32": lambda s, p, t: jn.fold(s, p, t, KERNEL.astype("int32")),
    "output_axis=4 is out of range": lambda s, p, t: jn.fold(s, p, t, KERNEL, output_axis=4),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_be_folded(message):
    says(lambda: REFUSED[message](*NORM), "fold", message)


@pytest.mark.parametrize("padding", ["VALID", "valid", 0, ((0, 0), (0, 0))])
def test_no_padding_in_any_way_to_say_it(padding):
    kernel, _ = jn.fold(jn.BatchNorm(), *jn.BatchNorm().init(4), KERNEL, before=True, padding=padding)
    assert kernel.shape == KERNEL.shape
