"""Where Flax is wrong, the drop-ins are right: each defect in both of Flax's interfaces, and what is an error here."""

import chex
import flax.linen
import flax.nnx
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

import jaxnorm as jn

KEY = jax.random.key(0)
LARGE_MEAN = (np.random.default_rng(0).standard_normal((8, 16, 16, 4)) + 1e4).astype(np.float32)
SPECS = {
    "BatchNorm": jn.BatchNorm(),
    "LayerNorm": jn.LayerNorm(epsilon=1e-6),
    "RMSNorm": jn.RMSNorm(epsilon=1e-6),
    "GroupNorm": jn.GroupNorm(groups=2, epsilon=1e-6),
    "InstanceNorm": jn.InstanceNorm(epsilon=1e-6),
}


def linen(name, library=jn.linen, **arguments):
    """x and a mask to y and the running statistics."""
    arguments |= {"use_running_average": False} if name == "BatchNorm" else {}
    arguments |= {"num_groups": 2} if name == "GroupNorm" else {}
    module = getattr(library, name)(**arguments)

    def run(x, mask=None):
        y, updates = module.apply(module.init(KEY, x), x, mask=mask, mutable=["batch_stats"])
        return y, updates.get("batch_stats", {})

    return run


def of_nnx(name, library=jn.nnx, **arguments):
    """The same."""
    arguments |= {"num_groups": 2} if name == "GroupNorm" else {}

    def run(x, mask=None):
        module = getattr(library, name)(x.shape[-1], **arguments, rngs=nnx.Rngs(0))
        y = module(x, mask=mask)
        return y, nnx.to_pure_dict(nnx.state(module, nnx.BatchStat))

    return run


each_module = pytest.mark.parametrize("norm", [linen, of_nnx], ids=["linen", "nnx"])
each_norm = pytest.mark.parametrize("name", SPECS)


def theirs(norm, name, **arguments):
    return norm(name, {linen: flax.linen, of_nnx: flax.nnx}[norm], **arguments)


@each_module
@each_norm
def test_a_large_mean(norm, name):
    want = oracle.normalize(SPECS[name], LARGE_MEAN)
    for fast in (True, False):
        y, stats = norm(name, use_fast_variance=fast)(LARGE_MEAN)
        assert oracle.ulps(y, want) < 16
        if stats:
            var = 0.99 + 0.01 * LARGE_MEAN.astype(float).var((0, 1, 2))
            np.testing.assert_allclose(stats["var"], var, rtol=1e-6)
    if name != "RMSNorm":  # has no mean to lose
        assert oracle.ulps(theirs(norm, name)(LARGE_MEAN)[0], want) > 1e5
        assert oracle.ulps(theirs(norm, name, use_fast_variance=False)(LARGE_MEAN)[0], want) > 100


def test_the_reference_of_two_of_flax_s_tests_is_off_where_ours_is_not():
    """Those that tests/flax_suites.py runs in float64: their float32 reference is off by more than they allow."""
    key, _ = jax.random.split(KEY)
    for shape, offset, spec, axes, allowed in (
        ((2, 3, 4), 1e6, jn.LayerNorm(), -1, 1e-3),
        ((2, 3, 4, 5), 1e4, jn.InstanceNorm(), (1, 2), 1e-6),
    ):
        x = jax.random.normal(key, shape) + offset
        reference = (x - x.mean(axes, keepdims=True)) * jax.lax.rsqrt(x.var(axes, keepdims=True) + 1e-5)
        exact = oracle.normalize(spec, x)
        y = getattr(jn.linen, type(spec).__name__)(epsilon=1e-5).apply({"params": spec.init(shape[-1])[0]._asdict()}, x)
        assert np.abs(reference - exact).max() > 20 * allowed
        assert np.abs(y - exact).max() < 1e-6


@each_module
@each_norm
def test_padding_of_nan_reaches_no_gradient(norm, name):
    mask = np.ones((4, 3, 1), bool)
    mask[1, 1] = mask[2] = False
    x = jax.random.normal(KEY, (4, 3, 4))
    full = np.broadcast_to(mask, x.shape)
    padded = jnp.where(mask, x, jnp.nan)
    loss = lambda x: jnp.where(mask, norm(name)(x, full)[0] ** 2, 0).sum()
    (y, stats), dx = jax.jit(lambda x: (norm(name)(x, full), jax.grad(loss)(x)))(padded)
    assert np.isfinite(y).all()
    assert np.isfinite(dx).all()
    assert (dx[~full] == 0).all()
    where = None if name in ("LayerNorm", "RMSNorm") else full  # there every position is on its own
    want = oracle.normalize(SPECS[name], x, where=where)
    np.testing.assert_allclose(np.where(mask, y, 0), np.where(mask, want, 0), atol=1e-5)
    chex.assert_tree_all_finite(stats)


@each_module
def test_a_batch_of_padding_leaves_the_running_statistics_alone(norm):
    stats = norm("BatchNorm")(jnp.full((4, 3), jnp.nan), jnp.zeros((4, 1), bool))[1]
    np.testing.assert_array_equal(stats["mean"], 0)
    np.testing.assert_array_equal(stats["var"], 1)
    assert np.isnan(theirs(norm, "BatchNorm")(jnp.ones((4, 3)), jnp.zeros((4, 1), bool))[1]["mean"]).all()


@each_module
def test_float_masks_are_weights(norm):
    x, weights = jnp.array([[1.0], [5.0], [7.0]]), jnp.array([[1.0], [3.0], [0.0]])
    _, stats = norm("BatchNorm", momentum=0.0)(x, weights)
    np.testing.assert_allclose([stats["mean"][0], stats["var"][0]], [4.0, 3.0], rtol=1e-6)


@each_module
def test_masked_shards_are_merged_by_their_counts(norm):
    x = jnp.array([[1.0, 2, 3, 4], [100, 0, 0, 0], [0, 0, 0, 0]])[..., None]
    mask = jnp.array([[1, 1, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0]], bool)[..., None]
    run = norm("BatchNorm", momentum=0.0, axis_name="shard")
    _, stats = jax.vmap(run, axis_name="shard")(x, mask)
    np.testing.assert_allclose(stats["mean"], 22.0)
    np.testing.assert_allclose(stats["var"], np.var([1, 2, 3, 4, 100]), rtol=1e-6)


TEAMS = {"even": [[0, 1], [2, 3], [4, 5], [6, 7]], "uneven": [[0, 3, 5], [1], [2, 4, 6, 7]]}


@each_module
@pytest.mark.parametrize("teams", TEAMS.values(), ids=TEAMS)
def test_teams_of_devices(norm, teams):
    x = jax.random.normal(KEY, (8, 6, 3)) * jnp.arange(1.0, 9)[:, None, None] + 100
    run = norm("BatchNorm", momentum=0.0, axis_name="device", axis_index_groups=teams)
    mesh = jax.make_mesh((8,), ("device",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = PartitionSpec("device")
    each = lambda x: jax.tree.map(lambda v: v[None], run(x[0]))
    y, stats = jax.jit(jax.shard_map(each, mesh=mesh, in_specs=spread, out_specs=spread, check_vma=False))(x)
    for team in teams:
        together = np.asarray(x, float)[np.array(team)]
        for device in team:
            np.testing.assert_allclose(stats["mean"][device], together.mean((0, 1)), rtol=1e-6)
            np.testing.assert_allclose(stats["var"][device], together.var((0, 1)), rtol=1e-5)
            want = oracle.normalize(jn.BatchNorm(), together)[team.index(device)]
            np.testing.assert_allclose(y[device], want, rtol=1e-4, atol=1e-5)


def test_running_statistics_keep_their_dtype():
    """So that they can be a scan's carry. In Flax, float16 ones become float32 with the first update."""
    arguments = {"param_dtype": jnp.float16, "dtype": jnp.float32, "force_float32_reductions": False}
    assert linen("BatchNorm", **arguments)(jnp.ones((4, 3)))[1]["mean"].dtype == jnp.float16


def test_evaluation_in_bfloat16_does_not_round_the_running_mean():
    x = jax.random.normal(KEY, (8, 3)).astype(jnp.bfloat16) + jnp.asarray(100, jnp.bfloat16)
    found = []
    for library in (jn.nnx, flax.nnx):
        norm = library.BatchNorm(3, dtype=jnp.bfloat16, use_running_average=True, rngs=nnx.Rngs(0))
        norm.mean[...] = jnp.full(3, 100.3)
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            found.append(np.asarray(norm(x), float))
    want = (np.asarray(x, float) - 100.3) / np.sqrt(1 + 1e-5)
    assert np.abs(found[0] - want).max() < 0.01 < 0.1 < np.abs(found[1] - want).max()


def test_groups_of_images_without_shared_positions():
    """flax.nnx repeats a group's statistics along axis 1 instead of the last one."""
    x = jax.random.normal(KEY, (2, 4, 4, 8))
    y = jn.nnx.GroupNorm(8, num_groups=2, reduction_axes=(-1,), rngs=nnx.Rngs(0))(x)
    want = oracle.normalize(jn.GroupNorm(groups=2, batch_axis=(0, 1, 2), epsilon=1e-6), x)
    np.testing.assert_allclose(y, want, atol=1e-5)


def test_complex_data_makes_the_running_mean_of_nnx_complex():
    x = jax.random.normal(KEY, (64, 2), jnp.complex64) + 1j
    norm = jn.nnx.BatchNorm(2, momentum=0.0, dtype=jnp.complex64, rngs=nnx.Rngs(0))
    norm(x)
    np.testing.assert_allclose(norm.mean[...], np.asarray(x).mean(0), rtol=1e-5)


@each_module
@each_norm
def test_a_mask_that_fits_in_two_ways_is_an_error(norm, name):
    x = jnp.ones((4, 4, 4, 4))
    with pytest.raises(ValueError, match=r"first or the last ones of x. Write mask\[..., None\] or mask\[None, ...\]"):
        norm(name)(x, jnp.ones((4, 4, 4), bool))
    with pytest.raises(ValueError, match="mask needs the 4 dimensions of x"):
        norm(name)(jnp.ones((2, 3, 5, 8)), jnp.ones((2, 3, 5), bool))
    norm(name)(x, jnp.ones((1, 1), bool))


ERRORS = [
    (lambda x: jn.linen.GroupNorm(num_groups=3).init(KEY, x), "does not divide 8 channels"),
    (lambda x: jn.linen.GroupNorm(num_groups=32, group_size=4).init(KEY, x), "does not divide 8 channels"),
    (lambda x: jn.linen.GroupNorm(num_groups=4, group_size=4).init(KEY, x), "not num_groups=4 groups of group_size=4"),
    (lambda x: jn.linen.GroupNorm(num_groups=None).init(KEY, x), "groups=None is not a positive int"),
    (lambda x: jn.linen.GroupNorm(num_groups=2, reduction_axes=(1, 2)).init(KEY, x), "lacks axis 3 of x"),
    (lambda x: jn.linen.InstanceNorm(feature_axes=(0, 3)).init(KEY, x), "cannot include the leading dimension"),
    (lambda x: jn.linen.LayerNorm(reduction_axes=7).init(KEY, x), "reduction_axes=7 is out of range"),
    (lambda x: jn.linen.BatchNorm().init(KEY, x), "use_running_average"),
    (lambda x: jn.linen.BatchNorm(momentum=None, use_running_average=False).init(KEY, x), "momentum=None"),
    (lambda x: jn.nnx.BatchNorm(6, rngs=nnx.Rngs(0))(x), r"state.mean has shape \(6,\), but axis 3 of x"),
    (lambda x: jn.nnx.LayerNorm(6, rngs=nnx.Rngs(0))(x), r"scale has shape \(6,\) and x has shape"),
    (lambda x: jn.nnx.GroupNorm(6, num_groups=2, use_scale=False, rngs=nnx.Rngs(0))(x), "not num_groups=2 groups"),
    (lambda x: jn.nnx.BatchNorm(8, use_running_average=None, rngs=nnx.Rngs(0))(x), "given nowhere"),
]


@pytest.mark.parametrize(("bad", "message"), ERRORS, ids=[message for _, message in ERRORS])
def test_errors(bad, message):
    with pytest.raises(ValueError, match=message):
        bad(jnp.ones((2, 3, 5, 8)))


@each_module
def test_a_traced_flag_is_an_error(norm):
    x = jnp.ones((2, 3))
    if norm is linen:
        module = jn.linen.BatchNorm()
        variables = module.init(KEY, x, use_running_average=True)
        run = lambda flag: module.apply(variables, x, flag)
    else:
        graph, state = nnx.split(jn.nnx.BatchNorm(3, rngs=nnx.Rngs(0)))
        run = lambda flag: nnx.merge(graph, state)(x, flag)
    with pytest.raises(TypeError, match="use_running_average is traced"):
        jax.jit(run)(True)


def test_float64_in_and_out():
    with jax.enable_x64(True):
        x = jax.random.normal(KEY, (4, 3, 8), jnp.float64) + 100
        want = oracle.normalize(jn.LayerNorm(epsilon=1e-6), x)
        with jax.numpy_dtype_promotion("standard"):
            y = jn.linen.LayerNorm().apply({"params": {"scale": jnp.ones(8), "bias": jnp.zeros(8)}}, x)
        assert y.dtype == jnp.float64
        np.testing.assert_allclose(y, want, atol=1e-12)
        narrow = jn.linen.LayerNorm(dtype=jnp.float64).apply(
            {"params": {"scale": jnp.ones(8, jnp.float32), "bias": jnp.zeros(8, jnp.float32)}}, x.astype(jnp.float32)
        )
        assert narrow.dtype == jnp.float64
