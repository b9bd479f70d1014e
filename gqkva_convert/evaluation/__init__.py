"""Measuring a model: perplexity, accuracy, agreement with the original, lm-evaluation-harness, speed."""
