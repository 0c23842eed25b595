"""What a task is before any tokenizer: generated families, how a question is asked, and where an answer is found."""
