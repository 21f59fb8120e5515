"""Programs as they are made for a platform, run on a CPU: the ways that a GPU's or a TPU's program goes.

This is the one place that knows how the library asks for the platform: by `jax.lax.platform_dependent`.
"""

from contextlib import contextmanager

import jax
import pytest

PLATFORMS = ("cpu", "cuda", "tpu")

on_every_platform = pytest.mark.parametrize("platform", PLATFORMS)


_platform = jax.make_user_context(None)
"""What is traced for one platform is not found again for another one."""


@contextmanager
def programs_for(platform):
    """What is traced in here takes the branches of that platform."""

    def of_platform(*args, default=None, **branches):
        return branches.get(platform, default)(*args)

    with _platform(platform), pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax.lax, "platform_dependent", of_platform)
        yield
