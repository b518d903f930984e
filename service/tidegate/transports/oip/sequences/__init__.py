"""Sequences of the Open Inference Protocol, mapped onto sessions."""
