"""Marks in a program say which call has its input straight from which."""

import jax
import jax.numpy as jnp

from jaxnorm._trained.neighbours import arguments, mark_input, mark_output, mark_variables, sources

X = jnp.ones(3)


def called(x, number):
    return mark_output(jnp.sin(mark_input(x, number)), number)


def found(f):
    return sources(jax.make_jaxpr(f)(X))


def test_one_after_another():
    assert found(lambda x: called(called(x, 0), 1))[1].call == 0
    assert found(lambda x: called(called(x, 0) + 1, 1))[1] == (None, "add", False)
    assert found(lambda x: called(jax.nn.relu(x), 0))[0].maker == "relu"
    assert found(lambda x: called(x, 0))[0].maker.startswith("the input of the model")


def test_what_others_take_too():
    def twice(x):
        y = called(x, 0)
        return called(y, 1) + y

    def given_back(x):
        y = called(x, 0)
        return called(y, 1), y

    def both(x):
        y = called(x, 0)
        return called(y, 1) + called(y, 2)

    for f in (twice, given_back, both):
        assert (found(f)[1].call, found(f)[1].shared) == (0, True)
        assert not found(f)[0].shared


def test_within_parts_of_a_program():
    def pair(x):
        return called(called(x, 0), 1)

    def loop(x):
        return jax.lax.scan(lambda x, _: (pair(x), None), x, length=2)[0]

    for f in (jax.jit(pair), jax.checkpoint(pair), loop, lambda x: jax.lax.cond(True, pair, jnp.cos, x)):
        assert found(f)[1].call == 0
    assert found(lambda x: jax.jit(lambda y: called(y, 1))(called(x, 0)))[1].call is None


def test_arguments():
    """A variable is known through functions that are compiled or recomputed, and not where it is computed."""

    def used(x):
        mark_variables({"kernel": x}, 0)
        return jnp.sin(x)

    def both(x):
        return used(x) + x

    lifts = [lambda f: f, jax.jit, jax.checkpoint, lambda f: jax.jit(jax.checkpoint(f))]
    for lift in lifts:
        found = arguments(jax.make_jaxpr(lift(used))(X))
        assert found.variables == {(0, "kernel"): 0}
        assert found.uses[0] == 1
        assert arguments(jax.make_jaxpr(lift(both))(X)).uses[0] == 2
        assert arguments(jax.make_jaxpr(lambda x, lift=lift: lift(used)(2 * x))(X)).variables == {}
    second = arguments(jax.make_jaxpr(lambda x, y: jax.jit(lambda a, b: used(b) + a)(x, y))(X, X))
    assert second.variables == {(0, "kernel"): 1}
    twice = arguments(jax.make_jaxpr(lambda x: jax.jit(lambda a, b: used(a) + b)(x, x))(X))
    assert twice.uses[0] == 2
    sliced = arguments(jax.make_jaxpr(lambda xs: jax.lax.map(used, xs))(jnp.ones((2, 3))))
    assert sliced.variables == {}


def test_values_stay_what_they_are():
    assert (mark_output(mark_input(X, 0), 0) == X).all()
    assert jax.grad(lambda x: mark_output(mark_input(x, 0), 0).sum())(X).tolist() == [1, 1, 1]
