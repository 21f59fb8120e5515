"""Acts on norms that are trained: what they become when a network is deployed."""
