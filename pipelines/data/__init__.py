"""Training data and questions: text, tasks, token shards, their tokens and order, and contamination."""
