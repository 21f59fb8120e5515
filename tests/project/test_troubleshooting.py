"""What docs/troubleshooting.md quotes is what JAX and Flax print."""

import pathlib
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import jaxnorm as jn

PAGE = (pathlib.Path(__file__).parents[2] / "docs" / "troubleshooting.md").read_text()
X = jnp.ones((2, 4, 3))
BN = jn.BatchNorm()
PARAMS, STATE = BN.init(3)
SHARED = {"variable_axes": {"params": None, "batch_stats": None}, "split_rngs": {"params": False}}


def one_mean_of_many_devices():
    mesh = jax.make_mesh((1,), ("batch",), axis_types=(AxisType.Auto,))
    step = lambda state, x: BN.apply(PARAMS, state, x, train=True)
    step = jax.shard_map(step, mesh=mesh, in_specs=(P(), P("batch")), out_specs=(P("batch"), P()))
    return jax.jit(step)(STATE, X)


def a_norm_shared_by_examples():
    variables = jn.linen.BatchNorm(use_running_average=False).init(jax.random.key(0), X[0])
    shared = nn.vmap(jn.linen.BatchNorm, **SHARED)(use_running_average=False)
    return shared.apply(variables, X, mutable=["batch_stats"])


def a_gradient_from_outside():
    spec = jn.BatchNorm(axis_name="batch")
    run = jax.jit(jax.vmap(lambda x: spec.apply(PARAMS, STATE, x, train=True)[0].sum(), axis_name="batch"))
    return jax.grad(lambda x: run(x).sum())(X)


def a_spec_in_parts():
    return jax.vmap(lambda spec: spec.apply(PARAMS, STATE, X, train=True))(jn.BatchNorm(momentum=jnp.array([0.9, 0.5])))


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        return jn.linen.BatchNorm(use_running_average=False)(x)


def updates_thrown_away():
    return Net().apply(Net().init(jax.random.key(0), X), X)


def an_axis_that_is_mapped_elsewhere():
    return jn.BatchNorm(axis_name="batch").apply(PARAMS, STATE, X, train=True)


def nnx_under_jax():
    norm = jn.nnx.Norm(BN, 3)
    return jax.jit(lambda x: norm(x))(X)


def arrays_in_a_module():
    return nn.jit(jn.linen.Norm)(jn.BatchNorm(momentum=jnp.float32(0.9)), train=True).init(jax.random.key(0), X)


def an_update_of_a_spec():
    norm = jn.nnx.Norm(jn.BatchNorm(momentum=jnp.float32(0.9)), 3)
    nnx.update(norm, nnx.split(norm)[1])


QUOTES = {
    one_mean_of_many_devices: [
        "was given out_specs which require replication which can't be statically inferred given the mesh",
        "If so, consider disabling the check by passing the check_vma=False argument to `jax.shard_map`.",
    ],
    a_norm_shared_by_examples: [
        "at vmap out_axes[1][1][0]['batch_stats']['mean'], got axis spec None but output was batched on axis 0"
    ],
    an_axis_that_is_mapped_elsewhere: ["batch_norm: axis_name='batch' is not bound here."],
    a_gradient_from_outside: ["unbound axis name: batch"],
    a_spec_in_parts: [
        "vmap was requested to map its argument along axis 0, which implies that its rank should be at least 1, but is "
        "only 0 (its shape is ())"
    ],
    updates_thrown_away: [
        'Cannot update variable "mean" in "/BatchNorm_0" because collection "batch_stats" is immutable.'
    ],
    nnx_under_jax: ["Cannot mutate BatchStat from a different trace level"],
    arrays_in_a_module: ["iteration over a 0-d array"],
    an_update_of_a_spec: ["Cannot set key 'momentum' on immutable node of type BatchNorm"],
}


@pytest.mark.parametrize("program", QUOTES, ids=lambda program: program.__name__)
def test_messages_are_quoted_as_they_are_printed(program):
    with pytest.raises(Exception) as error:  # noqa: PT011 - which type it is, is JAX's to choose
        program()
    for quote in QUOTES[program]:
        assert quote in str(error.value)
        assert quote in PAGE


def test_every_message_on_the_page_is_raised_here():
    section = PAGE.split("## Messages of JAX", 1)[1].split("\n## NaN", 1)[0]
    prose = re.sub(r"^```.*?^```$", "", section, flags=re.DOTALL | re.MULTILINE)
    quotes = [quote for quotes in QUOTES.values() for quote in quotes]
    lines, headings = (re.findall(pattern, prose, re.MULTILINE) for pattern in (r"^    (\S.*)$", "^### (.*)$"))
    assert len(lines) >= 6
    for line in lines:
        assert any(quote in line for quote in quotes), line
    for heading in headings:
        assert any(heading in quote for quote in quotes), heading
