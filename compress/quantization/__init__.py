"""Quantization in torch: grids, GPTQ, calibration, simulation, and training through the rounding."""
