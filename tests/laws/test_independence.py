"""In one program, what a statistic's y and dx are does not depend on the data of another: to the last bit.

A row is the same in whatever batch it is, so that inference does not depend on who else asks at the moment.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from cases import Case, optimized
from platforms import PLATFORMS, on_every_platform, programs_for

import jaxnorm as jn

pytestmark = pytest.mark.long

CASES = [
    Case("layer", jn.LayerNorm(), (6, 80)),
    Case("layer whole", jn.LayerNorm(axis=(1, 2, 3)), (4, 6, 5, 3)),
    Case("rms", jn.RMSNorm(use_bias=True), (6, 80)),
    Case("instance", jn.InstanceNorm(), (4, 6, 5, 4)),
    Case("instance NCHW", jn.InstanceNorm(channel_axis=1), (4, 4, 6, 5)),
    Case("group", jn.GroupNorm(groups=2), (4, 6, 5, 4)),
    Case("group NCHW", jn.GroupNorm(groups=2, channel_axis=1), (4, 4, 6, 5)),
    Case("batch", jn.BatchNorm(), (16, 5, 6)),
    Case("batch NCHW", jn.BatchNorm(channel_axis=1), (16, 6, 5)),
]


def others(x):
    """What may stand beside a statistic: x itself, moved, constant, and what is no number or overflows."""
    signs = np.where(np.arange(x.size).reshape(x.shape) % 2, 1, -1)
    yield "3 more", x + 3
    yield "1e4 more", x + 1e4
    yield "a thousandth about 30", 30 + 1e-3 * x
    yield "zero", 0 * x
    yield "a constant", 0 * x + 3.7e4
    yield "nan", 0 * x + np.nan
    yield "inf", 0 * x + np.inf
    yield "overflowing", 1e30 * signs
    yield "tiny", 1e-25 * x
    mixed = np.array(x + 1e4)
    mixed.flat[:: max(1, x.size // 7)] = np.nan
    yield "a few nan", mixed


BASES = {"good": 0.0, "poor": 100.0, "worse": 1e4}
"""Means of what is watched: beyond √3 standard deviations, 0 is a poor pivot for it."""


def labels(spec, shape):
    """Equal ones share a statistic."""
    label = oracle.labels(spec, shape)
    ghost = getattr(spec, "virtual_batch_size", None)
    return label if ghost is None else label + 1000 * (np.indices(shape)[0] // ghost)


def program(spec, shape, params, state, masked=False):
    """y and dx, compiled as users have it."""

    def run(x, g, where):
        norm = lambda x: spec.apply(params, state, x, train=True, where=where if masked else None)[0]
        y, pull = jax.vjp(norm, x)
        return y, pull(g)[0]

    return optimized(run)


def bits(values, chosen):
    """As integers: NaN equals itself, and 0 is not −0."""
    return [np.asarray(v)[chosen].view(f"u{np.asarray(v).itemsize}") for v in values]


def watch(spec, shape, run, dtype, where=None, other_where=None, bases=BASES):
    """Every second statistic is watched, the others change."""
    rng = np.random.default_rng(0)
    noise, g = rng.standard_normal((2, *shape))
    label = labels(spec, shape)
    chosen = np.isin(label, np.unique(label)[::2])
    as_data = lambda v: jnp.asarray(v.astype(np.float32)).astype(dtype)
    where = np.ones(shape, bool) if where is None else where
    changed = 0
    for base, mean in bases.items():
        x = noise + mean
        want = bits(run(as_data(x), as_data(g), where), chosen)
        for name, beside in others(noise):
            now = np.where(chosen, x, beside)
            then = where if other_where is None else np.where(chosen, where, other_where)
            got = run(as_data(now), as_data(g), then)
            for what, mine, old in zip(("y", "dx"), bits(got, chosen), want, strict=True):
                np.testing.assert_array_equal(mine, old, err_msg=f"{what} of {base} beside {name}")
            changed += 1
    assert changed == len(bases) * 10


PROGRAMS = [*(("float32", platform) for platform in PLATFORMS), ("bfloat16", "cpu"), ("bfloat16", "tpu")]


@pytest.mark.parametrize(("dtype", "platform"), PROGRAMS)
def test_the_bits_of_a_statistic_do_not_depend_on_the_others(dtype, platform):
    with programs_for(platform):
        failed = {}
        for case in [c for c in CASES if dtype == "float32" or "NCHW" not in c.name]:
            run = program(case.spec, case.shape, *case.params())
            try:
                watch(case.spec, case.shape, run, dtype)
            except AssertionError as error:
                failed[case.name] = str(error)
        assert not failed, "\n".join(f"{name}: {what}" for name, what in failed.items())


@pytest.mark.parametrize(("weights", "platform"), [("booleans", "cpu"), ("booleans", "tpu"), ("numbers", "cuda")])
def test_the_same_with_masks(weights, platform):
    """Whatever counts elsewhere: as much, or nothing at all."""
    rng = np.random.default_rng(1)
    with programs_for(platform):
        failed = {}
        for case in [c for c in CASES if "NCHW" not in c.name]:
            run = program(case.spec, case.shape, *case.params(), masked=True)
            where = rng.random(case.shape) < 0.7
            where = where if weights == "booleans" else (where * rng.random(case.shape)).astype(np.float32)
            for beside in (where, np.zeros_like(where)):
                try:
                    watch(case.spec, case.shape, run, "float32", where, beside)
                except AssertionError as error:
                    failed[case.name] = str(error)
        assert not failed, "\n".join(f"{name}: {what}" for name, what in failed.items())


@on_every_platform
@pytest.mark.parametrize(("ghost", "dtype"), [(1, "float32"), (4, "float32"), (4, "bfloat16")])
def test_one_ghost_does_not_depend_on_another(dtype, ghost, platform):
    spec, shape = jn.BatchNorm(virtual_batch_size=ghost), (16, 5, 3)
    with programs_for(platform):
        watch(spec, shape, program(spec, shape, *spec.init(3)), dtype)


@on_every_platform
def test_channels_beside_others_where_running_means_are_good_for_some(platform):
    """A state as training leaves it: near the mean of some channels, far from that of others."""
    spec, shape = jn.BatchNorm(), (16, 5, 6)
    params, state = spec.init(6)
    with programs_for(platform):
        for means in ([0, 0, 1e4, 1e4, 0, 1e4], [1e4] * 6, [100, 1e4] * 3, [0, 1e4] * 3, [np.nan, 0] * 3):
            watch(spec, shape, program(spec, shape, params, state._replace(mean=jnp.float32(means))), "float32")


@on_every_platform
def test_the_example_of_the_report(platform):
    """Six rows, 3 added to the first."""
    with programs_for(platform):
        x, g = jax.random.normal(jax.random.key(0), (2, 6, 80))
        for norm in (jn.layer_norm, jn.rms_norm, partial(jn.group_norm, groups=4), jn.instance_norm):
            data = x[..., None] if norm is jn.instance_norm else x
            run = optimized(lambda x, norm=norm: (norm(x), jax.vjp(norm, x)[1](g.reshape(x.shape))[0]))
            for now, then in zip(run(data.at[0].add(3)), run(data), strict=True):
                np.testing.assert_array_equal(now[1:], then[1:])


@on_every_platform
def test_forward_alone_and_mapped(platform):
    """Without a backward pass, statistics may be found in another way; and under vmap, a loop runs for all."""
    x = np.random.default_rng(0).standard_normal((5, 6, 40)).astype(np.float32)
    with programs_for(platform):
        for norm in (jn.layer_norm, jn.rms_norm, jn.instance_norm, partial(jn.group_norm, groups=4)):
            alone = partial(norm, batch_axis=None) if norm is jn.instance_norm else norm
            for f in (optimized(norm), optimized(jax.vmap(alone))):
                for base in BASES.values():
                    data = x + np.float32(base)
                    want = np.asarray(f(data))
                    for name, beside in others(x):
                        now = data.copy()
                        now[[0, 3]] = beside[[0, 3]]
                        np.testing.assert_array_equal(np.asarray(f(now))[[1, 2, 4]], want[[1, 2, 4]], err_msg=name)


@on_every_platform
def test_moments_of_one_do_not_depend_on_those_of_another(platform):
    x = np.random.default_rng(0).standard_normal((6, 80)).astype(np.float32)
    with programs_for(platform):
        run = optimized(lambda x: jn.moments(x, 1))
        for base in BASES.values():
            data = x + np.float32(base)
            want = run(data)
            for name, beside in others(x):
                now = data.copy()
                now[::2] = beside[::2]
                same = partial(np.testing.assert_array_equal, err_msg=name)
                jax.tree.map(lambda a, b, same=same: same(a[1::2], b[1::2]), run(now), want)
