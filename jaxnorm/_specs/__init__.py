"""The nouns: every norm as a spec, a frozen pytree."""
