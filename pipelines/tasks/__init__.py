"""Tasks as text: families of generated problems, formats of questions, and extraction of answers. Imports no torch."""
