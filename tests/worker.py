"""One process of several, as on several machines: trains on its share of every batch. Started by test_processes.py."""

import os
import sys
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxnorm as jn

STEPS, BATCH = 4, 16


class Net(nn.Module):
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, where):
        x = jn.linen.Norm(jn.BatchNorm(momentum=0.9, axis_name=self.axis_name), train=True)(x, where=where)
        x = nn.relu(nn.Dense(6)(x))
        x = jn.linen.BatchNorm(use_running_average=False, momentum=0.9, axis_name=self.axis_name)(x, mask=where)
        return nn.Dense(1)(x)


def batch(step):
    """Data, a mask that is uneven (at first, the first quarter has nothing), and targets."""
    rng = np.random.default_rng(step)
    x = (rng.standard_normal((BATCH, 4)) + np.array([1e3, 0, -5, 1])).astype(np.float32)
    where = rng.random((BATCH, 1)) > 0.4
    where[: BATCH // 4] &= step > 0
    return np.where(where, x, np.nan), where, np.where(where, rng.standard_normal((BATCH, 1)), 0).astype(np.float32)


def update(variables, x, where, target, axis_name=None):
    """A step of gradient descent. What is summed over a batch is summed over devices."""

    def loss(params):
        y, updates = Net(axis_name).apply({**variables, "params": params}, x, where, mutable=["batch_stats"])
        return jnp.where(where, (y - target) ** 2, 0).sum(), updates

    grads, updates = jax.grad(loss, has_aux=True)(variables["params"])
    params = jax.tree.map(lambda p, g: p - 0.01 * g, variables["params"], grads)
    return {"params": params, **updates}


def train(step, place):
    """Parameters and running statistics after some steps, and population statistics then.

    `place` makes an array of a process's share.
    """
    variables = Net().init(jax.random.key(0), *batch(0)[:2])
    for i in range(STEPS):
        variables = step(variables, *map(partial(place, i), batch(i)))
    batches = (tuple(map(partial(place, i), batch(i)[:2])) for i in range(STEPS))
    return {"trained": variables, "recalibrated": jn.linen.recalibrate(Net(), variables, batches)}


def main(process, processes, port, out, dies):
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
        f"localhost:{port}", processes, process, initialization_timeout=60, heartbeat_timeout_seconds=10
    )
    mesh = jax.make_mesh((processes,), ("batch",), axis_types=(AxisType.Auto,))
    split = P("batch")

    def place(i, v):
        if dies and (process, i) == (1, 2):
            os._exit(1)
        share = np.split(v, processes)[process]
        return jax.make_array_from_process_local_data(NamedSharding(mesh, split), share)

    named = jax.shard_map(
        partial(update, axis_name="batch"), mesh=mesh, in_specs=(P(), split, split, split), out_specs=P()
    )
    for how, step in (("jit", update), ("shard_map", named)):
        trained = train(jax.jit(step, out_shardings=NamedSharding(mesh, P())), place)
        leaves = {jax.tree_util.keystr(path): np.asarray(v) for path, v in jax.tree_util.tree_leaves_with_path(trained)}
        np.savez(f"{out}/{how}{process}.npz", **leaves)


if __name__ == "__main__":
    number, of, port, out, dies = sys.argv[1:]
    main(int(number), int(of), port, out, dies == "dies")
