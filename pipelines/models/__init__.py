"""Models in Hugging Face format: building, loading and saving them, their sizes and their cards."""
