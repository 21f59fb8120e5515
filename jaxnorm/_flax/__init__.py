"""Everything that both Flax adapters share: no maths, but what arguments and variables of Flax mean."""
