"""What is trained on and asked: text, tasks and questions as tokens, token shards, their order, and contamination."""
