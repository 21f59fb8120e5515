"""Programs as they are made for a platform, run on a CPU: the ways that a GPU's or a TPU's program goes.

This is the one place that knows how the library asks for the platform: by `jax.lax.platform_dependent`.
"""

from contextlib import contextmanager

import jax
import pytest

PLATFORMS = ("cpu", "cuda", "tpu")

on_every_platform = pytest.mark.parametrize("platform", PLATFORMS)


@contextmanager
def programs_for(platform):
    """What is traced in here takes the branches of that platform. Programs of another one are forgotten."""

    def of_platform(*args, default=None, **branches):
        return branches.get(platform, default)(*args)

    jax.clear_caches()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax.lax, "platform_dependent", of_platform)
        yield
    jax.clear_caches()
