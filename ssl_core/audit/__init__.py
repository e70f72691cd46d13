"""What is suspicious about labels and metadata: label errors, confounders, what is missing."""
