"""From what is typed to typed cells and launcher options, and the wording of mistakes on the way."""
