"""Constructors of Flax's nnx norms, with what ours take besides."""

import inspect
from functools import wraps
from typing import Any, Literal

from jax.nn.initializers import ones

from jaxnorm import _checks
from jaxnorm._flax.call import initial_scale

Frozen = Literal["statistics", "all"] | None
"""What `freeze` has frozen in a module, if anything."""


class WithScaleOffset:
    """The constructor of the base that comes next, one of Flax, which also takes `scale_offset`."""

    frozen: Frozen = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if WithScaleOffset not in cls.__bases__:
            return
        # A function for each class, as signatures differ: they show Flax's arguments and ours.
        ours, theirs = cls.__init__, _next_base(cls).__init__

        @wraps(theirs)
        def constructor(self: Any, *args: Any, **kwargs: Any) -> None:
            ours(self, *args, **kwargs)

        signature = inspect.signature(theirs)
        parameters = (*signature.parameters.values(), *_by_name(cls))
        constructor.__signature__ = signature.replace(parameters=parameters)  # pyright: ignore[reportAttributeAccessIssue]
        cls.__init__ = constructor

    def __init__(self, *args: Any, scale_offset: float = 0.0, **kwargs: Any):
        who = type(self).__name__
        self.scale_offset = _checks.scale_offset(scale_offset, who)
        if scale_offset:
            kwargs["scale_init"] = initial_scale(kwargs.get("scale_init", ones), scale_offset, who)
        super().__init__(*args, **kwargs)


def _next_base(cls: type) -> type:
    return cls.__mro__[cls.__mro__.index(WithScaleOffset) + 1]


def _by_name(cls: type) -> list[inspect.Parameter]:
    """The parameters that a class and `WithScaleOffset` take by name alone, in their constructors."""
    constructors = [vars(base)["__init__"] for base in (WithScaleOffset, cls) if "__init__" in vars(base)]
    parameters = [p for init in constructors for p in inspect.signature(init).parameters.values()]
    return [p for p in parameters if p.kind is p.KEYWORD_ONLY]
