"""Makes keras_renorm.npz: what Keras's batch renormalization gives, to be compared with without Keras.

    KERAS_BACKEND=jax python tests/recorded/keras_renorm.py    # with keras 3.13 or later

For each pair of limits, one step of training in float64 from running statistics that are given: x, γ, β, the running
mean and deviation before, y, and the gradients of Σ sin y.
"""

from pathlib import Path

import jax
import keras
import numpy as np

LIMITS = {"tight": (1.5, 0.5), "loose": (3.0, 5.0), "none": (None, None)}


def record(r_max, d_max):
    rng = np.random.default_rng(0)
    x = rng.normal(1.0, 2.0, (5, 3, 4))
    clipping = {} if r_max is None else {"rmax": r_max, "rmin": 1 / r_max, "dmax": d_max}
    layer = keras.layers.BatchNormalization(
        dtype="float64", epsilon=1e-3, renorm=True, renorm_clipping=clipping, renorm_momentum=0.9
    )
    layer.build(x.shape)
    before = {
        "gamma": rng.uniform(0.5, 1.5, 4),
        "beta": rng.normal(size=4),
        "renorm_mean": rng.normal(size=4),
        "renorm_stddev": rng.uniform(0.5, 3, 4),
    }
    for name, value in before.items():
        getattr(layer, name).assign(value)
    trained, held = ([v.value for v in vs] for vs in (layer.trainable_variables, layer.non_trainable_variables))

    def loss(trained, x):
        y, _ = layer.stateless_call(trained, held, x, training=True)
        return jax.numpy.sin(y).sum(), y

    (dtrained, dx), y = jax.grad(loss, (0, 1), has_aux=True)(trained, jax.numpy.asarray(x))
    return before | {"x": x, "y": y, "dx": dx, "dgamma": dtrained[0], "dbeta": dtrained[1]}


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    found = {f"{name}/{key}": np.asarray(v) for name, limits in LIMITS.items() for key, v in record(*limits).items()}
    np.savez_compressed(Path(__file__).with_suffix(".npz"), **found)
