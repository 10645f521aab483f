"""What makes a recommender smaller: pruning, distillation, quantization."""
