"""Captures, and vectors for many concepts, beside the usual loop and the bare passes."""
