"""Figures of a study, as Vega-Lite drawn to SVG.

`all_figures` lists and builds them; `paper_figures`, `extra_figures`, `further_figures` and `headline_figure` describe
them from the numbers of `figure_data` with the panels of `charts`; `figure_files` draws them in the process of
`vega_lite`.
"""
