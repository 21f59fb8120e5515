"""Programs as they are made for a platform, run on a CPU: the ways that a GPU's or a TPU's program goes.

This is the one place that knows how the library asks for the platform: by `jax.lax.platform_dependent`; and for the
size of the data, so that a test's few data go the ways of many, but for the platform that is called "few data".
"""

from contextlib import contextmanager

import jax
import pytest

from jaxnorm._core import pivot

PLATFORMS = ("cpu", "cuda", "tpu", "few data")

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
        few = platform == "few data"
        patch.setattr(pivot, "_SMALL", 2**40 if few else 0)
        patch.setattr(pivot, "_one_device", lambda: few)
        yield
