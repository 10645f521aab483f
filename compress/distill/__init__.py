"""Distillation: a student learns from a frozen teacher."""
