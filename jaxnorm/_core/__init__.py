"""Arithmetic on arrays alone: it knows no state, no spec and no errors of arguments, and imports no other room."""
