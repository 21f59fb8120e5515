"""Checkpoints interchange with Flax's in both directions, through files that orbax writes."""

import flax.linen
import flax.nnx
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx

import jaxnorm as jn
from benchmarks.networks import LinenBlock, NNXBlock

KEY = jax.random.key(0)
X = jax.random.normal(KEY, (4, 6, 6, 8)) * 2 + 1
NAMES = ["BatchNorm", "LayerNorm", "RMSNorm", "GroupNorm", "InstanceNorm"]


def through_a_file(tree, like, path):
    """What a program finds that knows only the shapes of its own tree."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path / "checkpoint", tree)
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(path / "checkpoint", like)


def arguments(name):
    return {"num_groups": 2} if name == "GroupNorm" else {}


def linen(library, name):
    """A block of a network: a function of variables, data and mode; and trained variables."""
    frozen = {"use_running_average": False} if name == "BatchNorm" else {}
    network = lambda **flags: LinenBlock(lambda: getattr(library, name)(**arguments(name), **flags), 8, 1)
    variables = jax.jit(network(**frozen).init)(KEY, X)
    _, updates = network(**frozen).apply(variables, X, mutable=["batch_stats"])
    evaluate = network(**dict.fromkeys(frozen, True))
    return variables | updates, lambda variables: evaluate.apply(variables, X)


def of_nnx(library, name):
    network = NNXBlock(
        lambda n, rngs: getattr(library, name)(n, **arguments(name), rngs=rngs), 8, 8, 1, rngs=nnx.Rngs(0)
    )
    network(X)
    network.eval()
    graph, state = nnx.split(network)
    return state, lambda state: nnx.merge(graph, state)(X)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("make", "ours", "theirs"), [(linen, jn.linen, flax.linen), (of_nnx, jn.nnx, flax.nnx)], ids=["linen", "nnx"]
)
@pytest.mark.parametrize("back", [False, True], ids=["to ours", "to Flax's"])
def test_round_trip(make, ours, theirs, back, name, tmp_path):
    writer, reader = (ours, theirs) if back else (theirs, ours)
    with jax.numpy_rank_promotion("allow"):
        written, evaluate = make(writer, name)
        want = evaluate(written)
        blank, evaluate = make(reader, name)
        blank = jax.tree.map(jnp.zeros_like, blank)
        read = through_a_file(written, jax.tree.map(ocp.utils.to_shape_dtype_struct, blank), tmp_path)
        assert jax.tree.structure(read) == jax.tree.structure(blank)
        np.testing.assert_allclose(evaluate(read), want, rtol=1e-4, atol=1e-4)
